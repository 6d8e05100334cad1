"""`gbs find` and `gbs diff`: what is where in the backup data, with every host switched off."""

import json
from dataclasses import asdict

import click

from flows.cli import terminal
from tasks import catalogue, file_search
from tasks.model.names import human_bytes, one_line

SHOWN_SHA256 = 12


class _FilesByDefault(click.Group):
    """`gbs find web1 fstab` is `gbs find files web1 fstab`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["files", *args]
        return super().parse_args(ctx, args)


@click.group("find", cls=_FilesByDefault)
def find_command() -> None:
    """Find files and VMs in the backup data, with every host switched off.

    \b
    gbs find web1 fstab          every night's files with "fstab" in their path
    gbs find web1 '*.key'        by name; with a slash ('/etc/*.key') by whole path
    gbs find vm web1             a VM in the backup data of the KVM hosts
    """


@find_command.command()
@click.argument("client")
@click.argument("pattern")
@terminal.json_option
def files(client: str, pattern: str, as_json: bool) -> int:
    """Regular files of CLIENT by a part of their path, or by PATTERN with * ? [ ]: in which nights, in which version.

    It reads the nights' listings alone: folders, links and devices are not in them.
    """
    found = file_search.find(client, catalogue.nights(client), pattern)
    if as_json:
        print(json.dumps([asdict(row) for row in found], indent=1))
        return 0 if found else 10
    body = [
        (
            *(one_line(row.path), version.sha256[:SHOWN_SHA256], _size(version.size_bytes)),
            *(version.nights[0], version.nights[-1], len(version.nights)),
            row.deleted if row.deleted and version is row.versions[-1] else "",
        )
        for row in found
        for version in row.versions
    ]
    columns = ("path", "sha256", "size", "since", "until", "nights", "gone in")
    terminal.rows(f"files of {client}", columns, body, False)
    return 0 if found else 10


@find_command.command()
@click.argument("name", metavar="VM")
@terminal.json_option
def vm(name: str, as_json: bool) -> None:
    """Where VM (a name or UUID) is in the backup data of the KVM hosts, its disks, and its images."""
    found = catalogue.find_vm(name)
    body = [
        (disk.target, disk.device, disk.type, disk.format or "", disk.source or "", disk.image) for disk in found.disks
    ]
    title = f"VM {found.vm} ({found.uuid}) of {found.kvm_host}, night {found.night}; {found.images} image(s)"
    terminal.rows(title, ("disk", "device", "type", "format", "source", "newest image"), body, as_json)


@click.command("diff")
@click.argument("client")
@click.argument("old", metavar="NIGHT")
@click.argument("new", metavar="NIGHT")
@click.argument("path", default="/")
@click.option("--content", is_flag=True, help="Show what changed in the text file PATH, as diff -u does.")
@terminal.json_option
def diff_command(client: str, old: str, new: str, path: str, content: bool, as_json: bool) -> None:
    """Regular files of CLIENT that were added, removed or changed between two nights, at PATH and below it.

    By their listings: owners and modes are not compared. A night is latest, overnight, daily.N, an id or a date.
    """
    nights = catalogue.nights(client)
    if content:
        for line in file_search.text_diff(client, nights, old, new, path):
            print("".join(one_line(char) if char != "\t" else char for char in line))
        return
    found = file_search.diff(client, nights, old, new, path)
    if as_json:
        print(json.dumps([asdict(row) for row in found], indent=1))
        return
    body = [(row.change, one_line(row.path), _size(row.old_bytes), _size(row.new_bytes)) for row in found]
    terminal.rows(f"{client}: {old} to {new}", ("change", "path", "before", "after"), body, False, "no difference")


def _size(size_bytes: int | None) -> str:
    return "" if size_bytes is None else human_bytes(size_bytes)
