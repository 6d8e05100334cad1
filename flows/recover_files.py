"""Files of a night, back on this server or on a client: checked before they are copied and where they arrive."""

import logging
from collections.abc import Sequence

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.run_name import of_files
from flows.vm_name import ClientName
from tasks import file_recovery, nights, places
from tasks.errors import RecoveryRefused
from tasks.model.file_recovery import Destination, RecoveredFiles, wanted
from tasks.model.names import human_bytes
from tasks.model.night_choice import Night

log = logging.getLogger(__name__)
NAMED = 10
FIX = "--overwrite replaces them and keeps the old ones aside; or give another --to"


@flow(name="recover-files", flow_run_name=of_files)
def recover_files(
    client: ClientName,
    paths: list[str],
    night: str = "latest",
    to: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> RecoveredFiles:
    """Bring files and folders of a client back as of a night, with owners, ACLs, xattrs, hard links and holes.

    Args:
        client: The client or KVM host, as the inventory names it.
        paths: Files and folders, from the client's root on.
        night: latest, overnight, daily.N, an id, or a date (YYYY-MM-DD).
        to: A folder of the GBS server, or CLIENT:/FOLDER (CLIENT:/ is where they were). None means a new folder.
        overwrite: Replace what is there and is not the same; the old is kept aside. Without it that refuses the run.
        dry_run: Only say what would be copied and what is in the way.
    """
    asked = wanted(paths)
    there = nights.nights_of(client)
    chosen = nights.choose_night(client, night)
    target = file_recovery.choose_destination(client, to, owners_kept=not chosen.manifest.fake_super)
    with places.locked("client", client):
        return _recover(client, asked, chosen, there, target, overwrite, dry_run)


def _recover(
    client: str,
    paths: tuple[str, ...],
    night: Night,
    there: Sequence[Night],
    to: Destination,
    overwrite: bool,
    dry_run: bool,
) -> RecoveredFiles:
    with nights.opened(night) as folder:
        chosen = file_recovery.select(client, night, folder, paths)
        where, occupied = file_recovery.look(to, paths, chosen.size_bytes)
        aside = file_recovery.aside_of(to) if occupied else None
        copies = file_recovery.returns(folder, night, to, where, there=occupied, aside=aside)
        replaced = file_recovery.differing(to, copies) if occupied else []
        if replaced and not overwrite and not dry_run:
            reason = f"{len(replaced)} things are there and differ, as {'; '.join(replaced[:3])}"
            raise RecoveryRefused(f"files to {to.words}", reason, FIX)
        if not dry_run:
            file_recovery.check_source(client, night, folder, chosen, there)
            file_recovery.copy(to, copies)
    recovered = RecoveredFiles(
        client=client,
        source=night.manifest.id,
        to=to.words,
        paths=tuple(f"/{path}" for path in paths),
        files=len(chosen.files),
        size_bytes=chosen.size_bytes,
        replaced=tuple(replaced),
        kept_aside=aside if replaced else None,
        verified=0 if dry_run else file_recovery.check_destination(to, chosen),
        dry_run=dry_run,
    )
    _publish(recovered)
    return recovered


def _publish(recovered: RecoveredFiles) -> None:
    rows = [{"in the way": text} for text in recovered.replaced[:NAMED]]
    did = "would be copied" if recovered.dry_run else f"copied, {recovered.verified} read again there"
    size = human_bytes(recovered.size_bytes)
    text = f"{recovered.files} files ({size}) of {recovered.client} as of {recovered.source} {did}, to {recovered.to}"
    if recovered.kept_aside and not recovered.dry_run:
        text += f"; what was replaced is in {recovered.kept_aside}"
    log.info("%s", text)
    create_table_artifact(table=rows, key="recover-files-report", description=text)
