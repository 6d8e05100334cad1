"""`gbs status` and `gbs list`: what is protected and what there is."""

from datetime import UTC, datetime

import click

from flows.cli import terminal
from tasks import catalogue
from tasks.model.names import human_age, human_bytes


def _age(moment: datetime | None) -> str:
    return f"{human_age((datetime.now(UTC) - moment).total_seconds())} ago" if moment else "never"


@click.command("status")
@terminal.json_option
def status_command(as_json: bool) -> int:
    """One line per client and KVM host: the last good night, its restore points, its image, what went wrong last."""
    protections = catalogue.protections()
    body = [
        (
            *(
                row.client,
                row.outcome,
                row.last_night.isoformat(timespec="seconds") if as_json and row.last_night else _age(row.last_night),
            ),
            *(human_bytes(row.size_bytes), "?" if row.points is None else row.points, row.newest_point),
            *(_age(row.image) if row.vm else "", _age(row.proven) if row.vm else ""),
            *(" ".join(row.held), "; ".join(row.reasons)),
        )
        for row in protections.rows
    ]
    columns = (
        *("client", "outcome", "last good night", "size", "points", "newest point"),
        *("image", "proven restorable", "held", "reason"),
    )
    terminal.rows("protection", columns, body, as_json)
    if protections.out_of_reach:
        click.echo(protections.out_of_reach, err=True)
    from_store = catalogue.instant_vms()
    for each in from_store:
        click.echo(each.line, err=True)
    interrupted = [each.line for each in catalogue.unfinished_drills() if not each.runs]
    interrupted += catalogue.interrupted_recoveries()
    for words in interrupted:
        click.echo(words, err=True)
    good = all(row.outcome in ("OK", "SKIPPED") and not row.held for row in protections.rows)
    good = good and all(each.is_well for each in from_store)
    return 0 if good and not (protections.out_of_reach or interrupted) else 3


@click.group("list")
def list_command() -> None:
    """What there is to recover from."""


@list_command.command()
@click.argument("vm", required=False)
@terminal.json_option
def images(vm: str | None, as_json: bool) -> None:
    """The images of VM, or all."""
    body = [
        (
            *(image.vm, image.id, image.kvm_host, image.method, image.consistency),
            *(human_bytes(sum(file.size_bytes for file in image.files)), image.flavour, human_age(image.window_s)),
        )
        for image in catalogue.images()
        if vm in (None, image.vm, image.uuid)
    ]
    columns = ("vm", "image", "from", "method", "consistency", "size", "flavour", "window")
    terminal.rows("images", columns, body, as_json)


@list_command.command()
@click.argument("client", required=False)
@terminal.json_option
def points(client: str | None, as_json: bool) -> None:
    """The nights of CLIENT, or of all, that can be recovered: the overnight copy and the restore points."""
    body = [
        (
            *(night.manifest.client, night.name, night.manifest.id, night.manifest.outcome.value),
            *(night.manifest.files, human_bytes(night.manifest.size_bytes), len(night.manifest.dumps)),
        )
        for night in catalogue.nights(client)
    ]
    columns = ("client", "point", "night", "outcome", "files", "size", "dumps")
    terminal.rows("nights", columns, body, as_json)


@list_command.command()
@click.argument("client", required=False)
@terminal.json_option
def held(client: str | None, as_json: bool) -> None:
    """The nights of CLIENT, or of all, that are kept aside until they are accepted or rejected."""
    body = [
        (
            *(name, one.night, one.change.against if one.change else "?", one.since.isoformat(timespec="seconds")),
            *("; ".join(one.reasons), one.change.text if one.change else "?"),
        )
        for name, nights in catalogue.held(client).items()
        for one in nights
    ]
    terminal.rows("held nights", ("client", "night", "against", "since", "reason", "changes"), body, as_json)


@list_command.command()
@click.argument("vm", required=False)
@terminal.json_option
def drills(vm: str | None, as_json: bool) -> None:
    """What the drills of VM, or of all, showed: whether it can be recovered, how fast, as of when."""
    body: list[tuple[object, ...]] = [
        (one.vm, "", "running" if one.runs else "INTERRUPTED", one.night, one.image, one.kvm_host, "", "", "", one.line)
        for one in catalogue.unfinished_drills(vm)
    ]
    body += [
        (
            *(one.vm, one.id, one.outcome.value, one.night, one.image, one.kvm_host),
            *(human_age(one.recovery_s), human_age(one.data_age.total_seconds()) if one.data_age else ""),
            *("; ".join((*one.databases, *one.probes)), "; ".join(one.reasons)),
        )
        for one in catalogue.drills(vm)
    ]
    columns = ("vm", "drill", "outcome", "night", "image", "on", "recovery time", "data age", "proven by", "reason")
    terminal.rows("drills", columns, body, as_json)


@list_command.command()
@terminal.json_option
def instant(as_json: bool) -> None:
    """The VMs that still run from the store: they are to be kept or abandoned."""
    show_instant(as_json)


def show_instant(as_json: bool) -> None:
    """Print the VMs that run from the store."""
    body = [
        (
            *(each.vm, each.kvm_host, each.state.value, each.image, each.night or "", _since(each.since, as_json)),
            each.served if as_json else "yes" if each.served else "NO, run: gbs reconcile",
        )
        for each in catalogue.instant_vms()
    ]
    columns = ("vm", "kvm host", "state", "image", "night", "since", "exported")
    terminal.rows("VMs that run from the store", columns, body, as_json, empty="none runs from the store")


def _since(moment: datetime, as_json: bool) -> str:
    return moment.isoformat(timespec="seconds") if as_json else _age(moment)
