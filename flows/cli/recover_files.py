"""`gbs recover files`."""

import os

import click

from flows.cli import terminal
from tasks.model.file_recovery import RecoveredFiles, only_attributes
from tasks.model.names import human_bytes, one_line
from tasks.model.outcome import EXIT_CODES, Outcome

SHOWN = 20


@click.command("files", short_help="Files as of a night, to a folder or a client.")
@click.argument("client")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--from", "night", default="latest", show_default=True, help="latest, daily.N, an id or YYYY-MM-DD.")
@click.option("--to", metavar="PLACE", help="A folder here, or CLIENT:/FOLDER; CLIENT:/ is where they were.")
@click.option("--image", is_flag=True, help="Out of an image of the VM CLIENT; --from is the image's id.")
@click.option("--overwrite", is_flag=True, help="Replace what is there and differs; the old is kept aside.")
@click.option("--dry-run", is_flag=True, help="Say what would be copied and what is in the way; change nothing.")
@terminal.json_option
def files(
    client: str,
    paths: tuple[str, ...],
    night: str,
    to: str | None,
    image: bool,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Bring PATHs of CLIENT back, with owners, ACLs, xattrs, hard links and holes, each read again where it arrives.

    Without --to they go to a new folder of the store, below which they have their full paths.
    """
    from flows.recover_files import recover_files

    place = os.path.abspath(to) if to is not None and to.startswith(".") else to
    recovered = recover_files(client, list(paths), night, place, overwrite, image, dry_run)
    show(recovered, as_json)
    return EXIT_CODES[Outcome.WARNING if recovered.warnings else Outcome.OK]


def show(recovered: RecoveredFiles, as_json: bool) -> None:
    """Print what came back, and what was in its way."""
    if as_json:
        print(recovered.model_dump_json(indent=1))
        return
    size = human_bytes(recovered.size_bytes)
    did = "would go" if recovered.dry_run else "are"
    terminal.out.print(f"{recovered.files} files ({size}) of {recovered.source} {did} in {recovered.to}", markup=False)
    for text in recovered.replaced[:SHOWN]:
        changed = "other attributes" if only_attributes(text) else "replaced"
        terminal.out.print(f"{'in the way' if recovered.dry_run else changed}: {one_line(text)}", markup=False)
    for warning in recovered.warnings:
        terminal.out.print(f"warning: {warning}", style="yellow", markup=False)
    if recovered.dry_run:
        terminal.out.print("dry run: nothing was changed")
    elif recovered.kept_aside:
        kept = sum(not only_attributes(text) for text in recovered.replaced)
        terminal.out.print(f"the {kept} old ones are in {recovered.kept_aside}", markup=False)
