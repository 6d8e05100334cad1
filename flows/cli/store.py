"""`gbs store`: make what a store lies on; the clock that the permanent store goes by."""

import shlex
from pathlib import Path

import click

from flows.cli import terminal
from tasks import history, volume

_FOLDER = click.Path(path_type=Path)


@click.group("store")
def store_command() -> None:
    """Make what a store lies on; see the clock that the permanent store goes by."""


@store_command.command()
@click.option("--vdo", "device", type=_FOLDER, required=True, help="The disk or partition to put it on: all of it.")
@click.option("--name", default="gbs", show_default=True, help="Of the volume group; it stands in the store's marker.")
@click.option(
    "--logical-size", metavar="SIZE", help="Of the file system, as 500G; three times the device's if not given."
)
@click.option("--mountpoint", type=_FOLDER, default=Path("/srv/gbs"), show_default=True)
@click.option("--run", "really", is_flag=True, help="Do it now, as root, if nothing at all is on the device.")
def create(device: Path, name: str, logical_size: str | None, mountpoint: Path, really: bool) -> None:
    """Put a store on LVM's VDO: what is there twice is stored once, and compressed.

    Without --run the commands are printed, and nothing is done. It needs lvm2, vdo, xfsprogs and a kernel with dm-vdo
    (Debian 13, RHEL 9 or newer), and 0.5 GiB of memory for each volume.
    """
    planned = volume.plan(device, name, logical_size, mountpoint)
    if not really:
        width = max(len(step.line) for step in planned.steps if len(step.line) < 90)
        for step in planned.steps:
            click.echo(f"{step.line:{width}}   # {step.why}")
        return
    volume.make(planned)
    where = shlex.quote(str(planned.mountpoint))
    terminal.out.print(f"made: {where}, marker {planned.name}", markup=False)
    terminal.out.print(
        f"in the inventory: path {where}; as the permanent store also store_id {planned.name}", markup=False
    )


@store_command.command()
@click.option("--confirm", is_flag=True, help="The clock is right as it is now.")
@terminal.json_option
def clock(confirm: bool, as_json: bool) -> int:
    """Whether the clock can be believed, by which pins end and what was given up is removed from the permanent store.

    Exit code 3 while it is in doubt: then nothing is given up or removed there.
    """
    found = history.clock(confirm=confirm)
    seen = found.seen.isoformat(timespec="seconds") if found.seen else ""
    body = [
        ("this machine", found.ours.isoformat(timespec="seconds")),
        ("the permanent store", found.theirs.isoformat(timespec="seconds") if found.theirs else "takes no writes"),
        ("the latest that was seen", seen),
    ]
    terminal.rows(f"clock: {found.doubt or 'believed'}", ("by", "time"), body, as_json)
    return 3 if found.doubt else 0
