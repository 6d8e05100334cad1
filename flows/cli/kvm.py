"""The four commands that operators know, and `gbs reconcile`."""

from collections.abc import Callable
from typing import Any, get_args

import click

from flows.cli import terminal
from tasks.model.image_method import WantedMethod
from tasks.model.names import human_age, human_bytes
from tasks.model.outcome import EXIT_CODES
from tasks.model.recovery import UpdatedImage

METHODS = get_args(WantedMethod)
HELP = {"help_option_names": ["-h", "--help"]}


@click.command("gbs-kvmimg-get", context_settings=HELP)
@click.argument("vm")
@click.option("--method", type=click.Choice(METHODS), help="How; without it, as the VM's policy says (auto).")
@click.option("--full", is_flag=True, help="Copy all of it, also where its changes since the last image would do.")
@terminal.json_option
def kvmimg_get_command(vm: str, method: Any, full: bool, as_json: bool) -> None:
    """Fetch an image of VM now, found by name or UUID in the backup data of the KVM hosts.

    \b
    auto        the backup API where a trial shows that the host has it, else SnapLive; offline when VM is shut off
    backup-api  only what changed since the last image travels; the new image is a whole disk all the same
    snaplive    snapshot, copy, block commit, pivot: serves every host since QEMU 2.1
    offline     copy a VM that is shut off, as it is
    """
    from flows.kvmimg_get import kvmimg_get as flow

    manifest = flow(vm, method, full)
    if as_json:
        print(manifest.model_dump_json(indent=1))
        return
    size = sum(file.size_bytes for file in manifest.files)
    window = f", window {human_age(manifest.window_s)}" if manifest.window_s else ""
    terminal.out.print(
        f"image {manifest.id} of {manifest.vm} from {manifest.kvm_host}: {human_bytes(size)}, {manifest.method}, "
        f"{manifest.consistency}-consistent{window}",
        markup=False,
    )
    for disk in manifest.disks:
        if disk.increment:
            terminal.out.print(f"{disk.target}: {disk.increment}", markup=False)
    for warning in manifest.warnings:
        terminal.out.print(f"warning: {warning}", style="yellow", markup=False)


@click.command("gbs-kvmimg-update", context_settings=HELP)
@click.argument("vm")
@click.option("--from", "night", default="latest", show_default=True, help="latest, daily.N, an id or YYYY-MM-DD.")
@click.option("--image", help="This image and no other, by its id; without it the newest that fits, or an older one.")
@click.option("--template", help="A template in place of an image: its flavour, VM/ID, or any.")
@terminal.json_option
def kvmimg_update_command(vm: str, night: str, image: str | None, template: str | None, as_json: bool) -> int:
    """Bring a copy of an image of VM up to the files of a night; the image itself is never changed."""
    from flows.kvmimg_update import kvmimg_update as flow

    run: Any = flow  # called, it gives what its final state has
    updated: UpdatedImage = run(vm, night, image, template)
    if as_json:
        print(updated.model_dump_json(indent=1))
        return EXIT_CODES[updated.outcome]
    for warning in updated.warnings:
        terminal.out.print(f"warning: {warning}", style="yellow", markup=False)
    terminal.out.print(
        f"{updated.folder}: image {updated.image} of {updated.vm} with the files of night {updated.night}", markup=False
    )
    return EXIT_CODES[updated.outcome]


@click.command("gbs-kvmsnap-create", context_settings=HELP)
@click.argument("vm")
@terminal.json_option
def kvmsnap_create_command(vm: str, as_json: bool) -> None:
    """Make external snapshots of all disks of VM at one instant, for a copy by another tool.

    Prints the files that now lie still. End it with gbs-kvmsnap-purge: the overlays grow with every write.
    """
    from flows.kvmsnap_create import kvmsnap_create as flow

    window = flow(vm)
    body = [(disk.target, disk.format, disk.base, disk.overlay) for disk in window.disks]
    terminal.rows(
        f"snapshot of {vm}, {window.consistency}-consistent", ("disk", "format", "copy", "overlay"), body, as_json
    )


@click.command("gbs-kvmsnap-purge", context_settings=HELP)
@click.argument("vm", required=False)
@click.option("--all", "every", is_flag=True, help="Every VM that has outstanding snapshots of ours.")
@terminal.json_option
def kvmsnap_purge_command(vm: str | None, every: bool, as_json: bool) -> None:
    """Remove the snapshots that gbs-kvmsnap-create made of VM: commit, pivot, unlink."""
    if (vm is None) != every:
        raise click.UsageError("name a VM, or say --all")
    from flows.kvmsnap_purge import kvmsnap_purge as flow

    _outcomes("purged", flow(vm), as_json)


@click.command("reconcile")
@click.argument("vm", required=False)
@terminal.json_option
def reconcile_command(vm: str | None, as_json: bool) -> None:
    """Close snapshot windows that a crash left open, of VM or of all: every disk goes back to its base image."""
    from flows.reconcile import reconcile as flow

    _outcomes("reconciled", flow(vm), as_json)


def _outcomes(title: str, outcomes: list[Any], as_json: bool) -> None:
    body = [(each.vm, each.target, "on its base" if each.settled else "NOT settled", each.reason) for each in outcomes]
    terminal.rows(title, ("vm", "disk", "state", "why"), body, as_json, empty="nothing was left open")


def _script(command: click.Command) -> Callable[[], None]:
    def main() -> None:
        terminal.run(command)

    return main


kvmimg_get = _script(kvmimg_get_command)
kvmimg_update = _script(kvmimg_update_command)
kvmsnap_create = _script(kvmsnap_create_command)
kvmsnap_purge = _script(kvmsnap_purge_command)
