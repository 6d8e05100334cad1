"""Files of a night, or out of an image, back on this server or on a client: read again where they arrive."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.run_name import of_files
from flows.vm_name import ClientName
from tasks import file_recovery, image_files, nights, places
from tasks.errors import RecoveryRefused
from tasks.model.file_recovery import Chosen, RecoveredFiles, only_attributes, wanted
from tasks.model.names import human_bytes

log = logging.getLogger(__name__)
Check = Callable[[], None]
NAMED = 10
FIX = "--overwrite replaces them and keeps the old ones aside; or give another --to"


@dataclass(frozen=True)
class Wish:
    """What was asked for."""

    client: str
    paths: tuple[str, ...]
    to: str | None
    overwrite: bool
    dry_run: bool


@flow(name="recover-files", flow_run_name=of_files)
def recover_files(
    client: ClientName,
    paths: list[str],
    night: str = "latest",
    to: str | None = None,
    overwrite: bool = False,
    image: bool = False,
    dry_run: bool = False,
) -> RecoveredFiles:
    """Bring files and folders of a client back as of a night, with owners, ACLs, xattrs, hard links and holes.

    Args:
        client: The client or KVM host, as the inventory names it.
        paths: Files and folders, from the client's root on.
        night: latest, overnight, daily.N, an id, or a date (YYYY-MM-DD). Of images: latest or an id.
        to: A folder of the GBS server, or CLIENT:/FOLDER (CLIENT:/ is where they were). None means a new folder.
        overwrite: Replace what is there and is not the same; the old is kept aside. Without it that refuses the run.
        image: Take them out of an image of the VM, which has no files of its own.
        dry_run: Only say what would be copied and what is in the way.
    """
    wish = Wish(client, wanted(paths), to, overwrite, dry_run)
    with (
        places.locked("client", client),
        _from_image(wish, night) if image else _from_night(wish, night) as (chosen, check),
    ):
        recovered = _recover(wish, chosen, check)
    _publish(recovered)
    return recovered


@contextmanager
def _from_night(wish: Wish, night: str) -> Iterator[tuple[Chosen, Check]]:
    """The files of the night, and what reads them before anything is written."""
    there = nights.nights_of(wish.client)
    chosen = nights.choose_night(wish.client, night)
    with nights.opened(chosen) as folder:
        found = file_recovery.select(wish.client, chosen, folder, wish.paths)
        check = partial(file_recovery.check_source, wish.client, chosen, folder, found, there)
        night_id, fake_super = chosen.manifest.id, chosen.manifest.fake_super
        yield Chosen(night_id, folder / "data", found.files, found.size_bytes, fake_super), check


@contextmanager
def _from_image(wish: Wish, image: str) -> Iterator[tuple[Chosen, Check]]:
    """The files in the newest image, or the one that is named."""
    folder, chosen = image_files.choose(wish.client, image)
    image_files.verify(folder, chosen)
    with image_files.opened(wish.client, folder, chosen, wish.paths) as (scratch, warnings):
        found = image_files.select(scratch)
        files = Chosen(
            f"image {chosen.id}", scratch / "data", found.files, found.size_bytes, places.fake_super(), warnings
        )
        yield files, lambda: None


def _recover(wish: Wish, chosen: Chosen, check: Check) -> RecoveredFiles:
    to = file_recovery.choose_destination(wish.client, wish.to, wish.paths, owners_kept=not chosen.fake_super)
    where, occupied = file_recovery.look(to, wish.paths, chosen.size_bytes)
    aside = file_recovery.aside_of(to) if occupied else None
    copies = file_recovery.returns(chosen, to, where, compare=occupied, aside=aside)
    replaced = file_recovery.differing(to, copies) if occupied else []
    if replaced and not wish.overwrite and not wish.dry_run:
        reason = f"{len(replaced)} things are there and differ, as {'; '.join(replaced[:3])}"
        raise RecoveryRefused(f"files to {to.words}", reason, FIX)
    if not wish.dry_run:
        check()
        file_recovery.copy(to, copies)
    return RecoveredFiles(
        client=wish.client,
        source=chosen.source,
        to=to.words,
        paths=tuple(f"/{path}" for path in wish.paths),
        files=len(chosen.files),
        size_bytes=chosen.size_bytes,
        replaced=tuple(replaced),
        kept_aside=None if all(map(only_attributes, replaced)) else aside,
        warnings=chosen.warnings,
        verified=0 if wish.dry_run else file_recovery.check_destination(to, chosen),
        dry_run=wish.dry_run,
    )


def _publish(recovered: RecoveredFiles) -> None:
    rows = [{"in the way": text} for text in recovered.replaced[:NAMED]]
    did = "would be copied" if recovered.dry_run else f"copied, {recovered.verified} read again there"
    size = human_bytes(recovered.size_bytes)
    text = f"{recovered.files} files ({size}) of {recovered.client} as of {recovered.source} {did}, to {recovered.to}"
    if recovered.kept_aside and not recovered.dry_run:
        text += f"; what was replaced is in {recovered.kept_aside}"
    log.info("%s", text)
    for warning in recovered.warnings:
        log.warning("%s", warning)
        text += f"; warning: {warning}"
    create_table_artifact(table=rows, key="recover-files-report", description=text)
