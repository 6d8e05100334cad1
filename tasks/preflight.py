"""A preflight: every connection, tool, mount and free space, tried now; one finding each."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from tasks import places
from tasks.drivers import (
    client_snapshot,
    databases,
    file_recovery,
    host_files,
    permanent,
    recovery_set,
    rsync,
    space,
    ssh,
    store_clock,
)
from tasks.drivers.snaplive_scan import scan
from tasks.drivers.ssh import Shell
from tasks.errors import ClockDoubted, GbsError, LeftBehind, StoreFull
from tasks.model.inventory_databases import Database
from tasks.model.inventory_engines import RSNAPSHOT
from tasks.model.inventory_systems import KvmHost, System
from tasks.model.names import human_bytes
from tasks.model.platform import Platform, Transport
from tasks.model.room import Room
from tasks.model.rsync_daemon import DaemonTarget

LOCAL_TOOLS = ("setpriv", "age", "rsync", "rsnapshot", "qemu-img", "qemu-nbd", "ssh", "cp", "sha256sum")
HOST_TOOLS = ("virsh", "qemu-img", "mv")
MIN_FREE_THERE_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """What was tried, whether it holds, and what was seen."""

    subject: str
    check: str
    good: bool
    seen: str


def check() -> Iterator[Finding]:
    """Every finding, as it is made: this server, the stores, each KVM host, each client."""
    declared = places.inventory()
    yield from _tools("this server", LOCAL_TOOLS)
    yield _try("this server", "libguestfs", _libguestfs)
    yield _try(
        "store", str(declared.store.path), lambda: _free(space.room(places.store().root), places.reserve_bytes())
    )
    yield _try("permanent store", str(declared.permanent.path), _permanent)
    yield _try("permanent store", "clock", _clock)
    if declared.server.recovery_set:
        yield _recovery_key(declared.server.recovery_keys)
    for name, system in declared.systems.items():
        if (engine := declared.policy_of(system).engine) != RSNAPSHOT:
            yield _try(f"client {name}", f"engine {engine}", partial(_engine, name))
        yield from _system(name, system, name in declared.kvm_hosts)


def _tools(subject: str, tools: tuple[str, ...]) -> Iterator[Finding]:
    for tool in tools:
        found = shutil.which(tool)
        yield Finding(subject, f"tool {tool}", found is not None, found or "not installed")


def _try(subject: str, what: str, trial: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, what, True, trial())
    except (GbsError, OSError, ImportError) as exc:
        return Finding(subject, what, False, str(exc))


def _libguestfs() -> str:
    import guestfs  # noqa: PLC0415 - a server without it must still be able to say so

    version = guestfs.GuestFS(python_return_dict=True).version()
    return f"{version['major']}.{version['minor']}.{version['release']}"


def _free(room: Room, reserve_bytes: int) -> str:
    if room.left_bytes < reserve_bytes:
        raise OSError(f"{human_bytes(room.left_bytes)} free, less than the reserve of {human_bytes(reserve_bytes)}")
    return f"{human_bytes(room.left_bytes)} free"


def _permanent() -> str:
    place = places.permanent()
    permanent.prove(place)
    return f"{place.kind}, marker {place.store_id}, {_free(permanent.at(place, space.room, place.path), 0)}"


def _clock() -> str:
    place = places.permanent()
    permanent.prove(place)
    clock = permanent.at(place, store_clock.read, place.path, datetime.now(UTC))
    if clock.doubt is not None:
        raise ClockDoubted(str(place.path), clock.doubt)
    return f"{clock.ours:%Y-%m-%d %H:%M}, the latest seen before {clock.seen or 'none'}"


def _recovery_key(keys: tuple[str, ...]) -> Finding:
    seen = f"{len(keys)} declared" if keys else recovery_set.NO_KEY
    return Finding("this server", "recovery key", bool(keys), seen)


def _engine(client: str) -> str:
    return f"{len(places.engine_of(client).points())} restore points"


def _system(name: str, system: System, is_kvm_host: bool) -> Iterator[Finding]:
    subject = f"KVM host {name}" if is_kvm_host else f"client {name}"
    if system.platform is not Platform.LINUX:
        yield Finding(subject, "platform", True, f"{system.profile.title}: tried against {system.profile.tried}")
    if daemon := places.daemon_of(name):
        yield _try(subject, "rsync daemon", partial(_daemon, daemon))
    if system.ssh:
        yield from _over_ssh(name, subject, system, is_kvm_host)


def _over_ssh(name: str, subject: str, system: System, is_kvm_host: bool) -> Iterator[Finding]:
    rsync_there = ("rsync",) if system.by is Transport.SSH else ()
    tools = dict.fromkeys((*system.profile.tools, *rsync_there, *(HOST_TOOLS if is_kvm_host else ())))
    try:
        with ssh.connect(places.target_of(name)) as shell:
            yield Finding(subject, "ssh", True, f"{shell.target.user}@{system.address}:{system.port}")
            if system.profile.tools:
                missing = [tool for tool in tools if not _is_there(shell, tool)]
                seen = f"missing: {' '.join(missing)}" if missing else " ".join(tools)
                yield Finding(subject, "tools", not missing, seen)
            for purpose, folder in _written(system):
                yield _try(subject, f"{purpose} {folder}", partial(_free_there, shell, folder))
            if system.files_identity is not None:
                yield _try(subject, "files key", lambda: _files_key(name))
            if system.recovery_identity is not None:
                yield _try(subject, "recovery key", partial(_writer, name, system.recovery_identity))
            if system.snapshot != "none":
                yield _try(subject, "snapshots", partial(_snapshots, shell, system))
            for database in system.databases:
                yield _database(subject, shell, database)
    except GbsError as exc:
        yield Finding(subject, "ssh", False, str(exc))
        return
    if is_kvm_host:
        yield _try(subject, "libvirt", lambda: _libvirt(name))
        yield _try(subject, "overlays", lambda: _overlays(name))


def _is_there(shell: Shell, tool: str) -> bool:
    return shell.run(["sh", "-c", 'command -v "$1"', "gbs", tool], deadline_s=30, check=False).status == 0


def _writer(name: str, identity: str) -> str:
    with ssh.connect(places.recovery_target_of(name)) as shell:
        file_recovery.require_writer(shell, identity)
    return f"{identity} can write"


def _daemon(daemon: DaemonTarget) -> str:
    rsync.reach(daemon, deadline_s=30)
    return f"module {daemon.module} on port {daemon.port}"


def _files_key(name: str) -> str:
    target = places.files_target_of(name)
    rsync.reach(target, deadline_s=30)
    return f"{target.user}@{target.address}:{target.port} by {target.private_key_file}"


def _snapshots(shell: Shell, system: System) -> str:
    return client_snapshot.outlook(shell, system.paths, system.snapshot, system.snapshot_room_percent)


def _database(subject: str, shell: Shell, database: Database) -> Finding:
    if database.engine == "command":
        tool = database.command[0]
        there = _is_there(shell, tool)
        return Finding(subject, database.called, there, tool if there else f"there is no command {tool}")
    ready = databases.is_ready(shell, database.server)
    return Finding(subject, database.called, ready, "accepts connections" if ready else "does not answer")


def _overlays(name: str) -> str:
    """No VM is on an overlay of ours that no journal explains."""
    with places.hypervisor(name) as (host, _):
        stray = scan(host, places.store().journal)
    if stray:
        first = stray[0]
        why = f"VM {first.vm} is on {first.overlay}, and no journal says why"
        raise LeftBehind(
            f"an overlay of run {first.run}", why, f"virsh blockcommit {first.uuid} {first.target} --pivot"
        )
    return "none that a journal does not explain"


def _written(system: System) -> Iterator[tuple[str, str]]:
    """The folders of a system that we write to, and for what."""
    if system.databases:
        yield "dumps in", system.dump_folder
    if isinstance(system, KvmHost):
        yield "recovered disks in", system.image_folder


def _free_there(shell: Shell, folder: str) -> str:
    left = host_files.free_space(shell, folder)
    if left.size_bytes < MIN_FREE_THERE_BYTES:
        raise StoreFull(f"{shell.target.name}:{folder}", MIN_FREE_THERE_BYTES, left.size_bytes)
    return f"{human_bytes(left.size_bytes)} free"


def _libvirt(name: str) -> str:
    with places.hypervisor(name) as (host, _):
        versions = ", ".join(f"{name} {version}" for name, version in host.versions().items())
        return f"{versions}, {len(host.domain_names())} VM(s)"
