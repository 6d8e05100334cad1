"""Stage 1 for files: pull a client into a staging tree and publish it as the overnight copy when it is good."""

import logging
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tasks import places
from tasks.drivers import changed, rsync, saveset, ssh, tar_stream
from tasks.drivers.changed import Changed
from tasks.drivers.databases import data_patterns, proving
from tasks.drivers.digest import Listed, sha256_file, write_listing
from tasks.drivers.progress import reporting
from tasks.drivers.rsync import OnProgress, Transferred, Wanted
from tasks.drivers.space import require
from tasks.drivers.store import Store, discard, keeps_nanoseconds, read_model, replace, sync_folder, write_model
from tasks.drivers.tool_versions import tool_versions
from tasks.errors import IntegrityError, NothingToRecover, SourceRefused
from tasks.model.client_snapshot import SnapshotTree
from tasks.model.differences import differences
from tasks.model.facts import Facts
from tasks.model.inventory_systems import System
from tasks.model.manifest import LISTING, MANIFEST, DumpRecord, NightCost, NightManifest
from tasks.model.mounts import lost_mounts
from tasks.model.names import new_id, one_line
from tasks.model.need import KEPT_COSTS, Need, first_night, next_night
from tasks.model.outcome import Outcome
from tasks.model.platform import Transport
from tasks.model.prepared import Prepared, paths_of
from tasks.model.shape import compare, shape_of_facts
from tasks.retryable import retryable

FEW_FILES = 20
"""So few may all change in a night."""
log = logging.getLogger(__name__)


def excludes_of(system: System, prepared: Prepared, tree: SnapshotTree | None) -> tuple[str, ...]:
    """What is left out: the platform's, the operator's, the data files of databases that a dump covers, the tree's."""
    covered = [database for database in system.databases if prepared.covered(database.called)]
    data = tuple(pattern for database in covered for pattern in data_patterns(database.engine, database.names))
    hidden = tree.left_out if tree else ()
    return tuple(dict.fromkeys((*system.profile.exclude, *system.exclude, *data, *hidden)))


def read_prepared(client: str) -> Prepared:
    """What stage 0 left; NothingToRecover when it never ran for this client."""
    path = places.store().prepared(client)
    prepared = read_model(path, Prepared)
    if prepared is None:
        raise NothingToRecover(f"client {client}", f"stage 0 has not run: there is no {path}; run: gbs run prepare")
    return prepared


@retryable("compare layout", "compare layout of {client}", retries=0)
def compare_layout(client: str) -> list[str]:
    """What changed in the client's disks, file systems, start and network since its last night, a line each.

    Raises SourceRefused when a file system that was pulled is not mounted though its device is there: what lies in
    its place is not what the client has.
    """
    store, prepared = places.store(), read_prepared(client)
    night, last = store.night_of(client), read_model(store.overnight(client) / "facts.json", Facts)
    if night is None or last is None:
        return []
    system, _ = places.system_of(client)
    lost = lost_mounts(last, prepared.facts, [path for path in night.paths if path not in system.exclude])
    for row in lost.unmounted:
        what = f"{row.mountpoint} ({row.source}) was mounted last night and is not now"
        raise SourceRefused(client, f"{what}: mount it, or exclude {row.mountpoint} when it is not used any more")
    points = compare(shape_of_facts(last), shape_of_facts(prepared.facts))
    points += differences(last, prepared.facts)
    return [
        *(one_line(f"{row.mountpoint} ({row.source}) is gone with its device") for row in lost.removed),
        *(
            one_line(f"{point.what} changed from {point.template} to {point.client}")
            for point in points
            if not point.same
        ),
    ]


@retryable("pull files", "pull files of {client}")
def pull(client: str, tree: SnapshotTree | None = None) -> Transferred:
    """The client's files in the staging tree, read from `tree` if given; unchanged ones are hard links to last night's.

    The tree is always a new one: rsync would change owners and modes of files it finds there in place, and with them
    those of the published night that shares the inode. What an interrupted pull brought is linked in, not sent again,
    and a file that it had in part goes on from there.
    """
    system, policy = places.system_of(client)
    store, prepared = places.store(), read_prepared(client)
    staging, aborted = store.staging(client), store.aborted(client)
    if staging.exists() and not aborted.exists():
        staging.rename(aborted)
    discard(staging, store.trash, staging.name)
    require(store.root, _need(client, store, system, prepared, tree), places.reserve_bytes(), client)
    (staging / "data").mkdir(parents=True)
    carried = rsync.carry_partial(aborted / "data", staging / "data")
    with reporting(log, f"pull {client}") as progress:
        wanted = Wanted(
            paths=[tree.reads[path] if tree else path for path in paths_of(system, prepared)],
            options=system.profile.rsync_options,
            exclude=excludes_of(system, prepared, tree),
            link_dests=[folder for folder in (store.overnight(client) / "data", aborted / "data") if folder.exists()],
            limit_kib_s=policy.bandwidth_limit_kib_s,
            fake_super=places.fake_super(),
            whole_seconds=not keeps_nanoseconds(staging),
        )
        moved = _bring(client, system, wanted, staging, policy.transfer_deadline_s, progress.update)
    for folder in carried:
        shutil.rmtree(folder, ignore_errors=True)
    discard(aborted, store.trash, aborted.name)
    _require_plausible(client, moved, store.night_of(client), policy.max_shrink_percent)
    return moved


def _need(client: str, store: Store, system: System, prepared: Prepared, tree: SnapshotTree | None) -> Need:
    """What tonight is expected to add to the store; nothing where nothing is known."""
    night = store.night_of(client)
    if night is None and not store.aborted(client).exists():
        return first_night(prepared.facts.file_systems, paths_of(system, prepared), excludes_of(system, prepared, tree))
    return next_night(night.costs if night else ()) or Need(0, 0, "its next night's size is not known")


def _bring(
    client: str, system: System, wanted: Wanted, staging: Path, deadline_s: int, on_progress: OnProgress
) -> Transferred:
    data = staging / "data"
    match system.by:
        case Transport.TAR:
            target, scratch = places.files_target_of(client), staging / "unpacked"
            return tar_stream.pull(
                target, system.profile.tar, wanted, scratch, data, deadline_s=deadline_s, on_progress=on_progress
            )
        case Transport.SAVESET:
            with ssh.connect(places.target_of(client)) as shell:
                return saveset.pull(
                    shell, wanted.paths, system.dump_folder, data, deadline_s=deadline_s, on_progress=on_progress
                )
        case Transport.SSH | Transport.DAEMON:
            source = places.daemon_of(client) or places.files_target_of(client)
            return rsync.pull(source, wanted, data, deadline_s=deadline_s, on_progress=on_progress)


def rewritten(client: str, moved: Transferred) -> list[str]:
    """A line when so many of the files were written anew since last night that somebody should know why."""
    _, policy = places.system_of(client)
    last = places.store().night_of(client)
    if last is None or moved.changed < FEW_FILES or moved.changed * 100 <= last.files * policy.max_change_percent:
        return []
    what = f"{moved.changed} files were written anew since last night, which had {last.files}"
    return [f"{what}: restored, upgraded, encrypted? Older restore points have them as they were"]


def _require_plausible(client: str, moved: Transferred, last: NightManifest | None, max_shrink_percent: int) -> None:
    if moved.files == 0 or moved.size_bytes == 0:
        raise SourceRefused(client, "it is empty")
    if last is not None:
        _require_not_shrunk(client, "bytes", last.size_bytes, moved.size_bytes, max_shrink_percent)


def _require_not_shrunk(client: str, unit: str, before: int, now: int, max_shrink_percent: int) -> None:
    if now * 100 < before * (100 - max_shrink_percent):
        change = f"it shrank from {before} to {now} {unit}, more than {max_shrink_percent} %"
        raise SourceRefused(client, f"{change}; if that is right, raise max_shrink_percent for one night")


def dumps_to_prove(client: str) -> list[DumpRecord]:
    """The dumps that the inventory wants to be proven by a restore, accounts apart."""
    system, _ = places.system_of(client)
    asked = {database.called for database in system.databases if database.prove}
    return [dump for dump in read_prepared(client).dumps if dump.called in asked and dump.kind == "database"]


@retryable("prove dump", "prove {dump.engine} {dump.database} of {client}", retries=0)
def prove(client: str, dump: DumpRecord) -> DumpRecord:
    """Restore a dump that was pulled into a throw-away server here; with its number of tables. DumpFailed if it is bad.

    Raises IntegrityError when what arrived is not what was made on the client.
    """
    _, policy = places.system_of(client)
    data = places.store().staging(client) / "data"
    _verify_dumps(data, (dump,))
    with reporting(log, f"prove {dump.engine} {dump.database} of {client}"):
        path = data / dump.path.lstrip("/")
        return dump.model_copy(
            update={"tables": proving.tables_of(dump, path, places.store().root, policy.dump_deadline_s)}
        )


@retryable("publish night", "publish night of {client}", retries=0)
def publish(
    client: str,
    started: datetime,
    moved: Transferred,
    proven: Sequence[DumpRecord] = (),
    doubts: Sequence[str] = (),
    tree: SnapshotTree | None = None,
) -> NightManifest:
    """Check the dumps that arrived, list every file's sha256, and make the staging tree the overnight copy.

    `proven` are dumps as `prove` gave them back, `doubts` what was found wrong with others, `tree` is as `pull` got it.
    """
    _, policy = places.system_of(client)
    store, prepared = places.store(), read_prepared(client)
    staging, published = store.staging(client), store.overnight(client)
    _verify_dumps(staging / "data", prepared.dumps)
    last = store.night_of(client)
    with reporting(log, f"list files of {client}"):
        listed = write_listing(staging / "data", staging / LISTING, published / "data", store.listing_of(client))
    if last is not None:
        _require_not_shrunk(client, "files", last.files, listed.files, policy.max_shrink_percent)
    write_model(staging / "facts.json", prepared.facts)
    vanished = (f"vanished while read: {line}" for line in moved.vanished)
    failures = (*prepared.failures, *doubts)
    manifest = _manifest(client, started, listed, failures, (*(tree.warnings if tree else ()), *vanished), proven, tree)
    write_model(staging / MANIFEST, manifest)
    if last is not None:
        _note_changed(store, last, manifest, listed)
    replace(staging, published)
    discard(staging, store.trash, staging.name)
    sync_folder(published.parent)
    return manifest


def _manifest(
    client: str,
    started: datetime,
    listed: Listed,
    failures: Sequence[str],
    warnings: Sequence[str],
    proven: Sequence[DumpRecord],
    tree: SnapshotTree | None,
) -> NightManifest:
    """What the staging tree is."""
    system, _ = places.system_of(client)
    store, prepared = places.store(), read_prepared(client)
    staging, last = store.staging(client), store.night_of(client)
    dumps = {dump.path: dump for dump in (*prepared.dumps, *proven)}
    return NightManifest(
        id=new_id(started),
        client=client,
        started=started,
        ended=datetime.now(UTC),
        outcome=Outcome.PARTIAL if failures else Outcome.WARNING if warnings else Outcome.OK,
        warnings=(*failures, *warnings),
        paths=paths_of(system, prepared),
        excluded=excludes_of(system, prepared, tree),
        sources=tree.sources if tree else (),
        dumps=tuple(dumps.values()),
        flavour=shape_of_facts(prepared.facts).flavour,
        files=listed.files,
        size_bytes=listed.size_bytes,
        costs=_costs(last, listed, new_id(started)),
        fake_super=places.fake_super(),
        listing_sha256=sha256_file(staging / LISTING),
        facts_sha256=sha256_file(staging / "facts.json"),
        tools=tool_versions("rsync"),
    )


def _note_changed(store: Store, last: NightManifest, night: NightManifest, listed: Listed) -> None:
    """Tell stage 2 what changed; without that it looks for itself."""
    path = store.changed(night.client)
    try:
        path.unlink(missing_ok=True)
        if (found := changed.find(store.staging(night.client) / "data", listed)) is not None:
            changed.write(path, Changed(last.id, night.id, found))
    except OSError as exc:
        log.warning("what changed is not noted: %s", exc)


def _costs(last: NightManifest | None, listed: Listed, night: str) -> tuple[NightCost, ...]:
    """What the last nights added, with this one; a night that was linked to none is no measure of the next."""
    tonight = NightCost(night=night, new_bytes=listed.new_bytes, new_inodes=listed.new_inodes)
    return (*(last.costs if last else ()), *([tonight] if listed.fresh is not None else []))[-KEPT_COSTS:]


def _verify_dumps(data: Path, dumps: tuple[DumpRecord, ...]) -> None:
    for dump in dumps:
        path = data / dump.path.lstrip("/")
        found = sha256_file(path) if path.is_file() else "nothing"
        if found != dump.sha256:
            raise IntegrityError(str(path), f"{dump.sha256} as made on the client", found)
