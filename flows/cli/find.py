"""`gbs find` and `gbs diff`: what is where in the backup data, with every host switched off."""

import json
from collections.abc import Sequence
from dataclasses import asdict

import click

from flows.cli import terminal
from tasks import catalogue, file_search, image_search
from tasks.errors import ConfigError
from tasks.model.file_history import Difference, Found, differences
from tasks.model.names import human_bytes, one_line
from tasks.model.outcome import EXIT_CODES, Outcome

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
    gbs find web1 fstab --images the same inside its VM's images
    gbs find vm web1             a VM in the backup data of the KVM hosts
    """


@find_command.command()
@click.argument("client")
@click.argument("pattern")
@click.option("--images", is_flag=True, help="Look into all images of its VM, which takes a minute or more for each.")
@click.option("--image", "chosen", multiple=True, metavar="ID|latest", help="Look into this image; may be repeated.")
@terminal.json_option
def files(client: str, pattern: str, images: bool, chosen: tuple[str, ...], as_json: bool) -> int:
    """Regular files of CLIENT by a part of their path, or by PATTERN with * ? [ ]: in which nights, in which version.

    It reads the nights' listings alone: folders, links and devices are not in them. With --image or --images it looks
    into images of the VM instead (CLIENT may be a VM then), which libguestfs opens read-only.
    """
    inside = images or bool(chosen)
    kind = "images" if inside else "nights"
    if inside:
        found, warnings = image_search.find(client, pattern, chosen)
    else:
        found, warnings = file_search.find(client, catalogue.nights(client), pattern)
    code = _warned(warnings) or (0 if found else 10)
    if as_json:
        print(json.dumps([asdict(row) for row in found], indent=1))
        return code
    body = [
        (
            *(one_line(row.path), version.sha256[:SHOWN_SHA256], _size(version.size_bytes)),
            *(version.nights[0], version.nights[-1], len(version.nights)),
            row.deleted if row.deleted and version is row.versions[-1] else "",
        )
        for row in found
        for version in row.versions
    ]
    columns = ("path", "sha256", "size", "since", "until", kind, "gone in")
    terminal.rows(f"files of {client}, in its {kind}", columns, body, False)
    return code


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
def diff_command(client: str, old: str, new: str, path: str, content: bool, as_json: bool) -> int:
    """Regular files of CLIENT that were added, removed or changed between two nights, at PATH and below it.

    By their listings: owners and modes are not compared. A night is latest, overnight, daily.N, an id or a date;
    image:latest and image:ID name an image of its VM, of which all files at PATH are read: give one.
    """
    inside = _is_image(old) or _is_image(new)
    if content:
        if inside:
            fix = "recover the file from the image (gbs recover files --image) and compare them"
            raise ConfigError("--content compares nights", "an image was named", fix)
        for line in file_search.text_diff(client, catalogue.nights(client), old, new, path):
            print("".join(one_line(char) if char != "\t" else char for char in line))
        return 0
    if inside:
        found, warnings = _differences(client, old, new, path)
    else:
        found, warnings = file_search.diff(client, catalogue.nights(client), old, new, path), ()
    code = _warned(warnings)
    if as_json:
        print(json.dumps([asdict(row) for row in found], indent=1))
        return code
    body = [(row.change, one_line(row.path), _size(row.old_bytes), _size(row.new_bytes)) for row in found]
    terminal.rows(f"{client}: {old} to {new}", ("change", "path", "before", "after"), body, False, "no difference")
    return code


def _warned(warnings: Sequence[str]) -> int:
    """Print them, not among what may be JSON; the exit code that they come to."""
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    return EXIT_CODES[Outcome.WARNING if warnings else Outcome.OK]


def _differences(client: str, old: str, new: str, path: str) -> tuple[list[Difference], tuple[str, ...]]:
    """Where a side is an image: all that is at the path on both sides, compared; what could not be looked at."""
    nights = [] if all(map(_is_image, (old, new))) else catalogue.nights(client)

    def files(word: str) -> tuple[dict[str, Found], tuple[str, ...], tuple[str, ...]]:
        if _is_image(word):
            return image_search.files_at(client, word, path)
        return file_search.files_at(client, nights, word, path), (), ()

    (before, unseen, warnings), (after, unseen_too, more) = files(old), files(new)
    return differences(before, after, (*unseen, *unseen_too)), (*warnings, *more)


def _is_image(word: str) -> bool:
    return word.startswith(image_search.PREFIX)


def _size(size_bytes: int | None) -> str:
    return "" if size_bytes is None else human_bytes(size_bytes)
