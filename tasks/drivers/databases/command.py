"""Any other engine: a command of the operator's that must leave named files in the folder that it is run in."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from tasks.drivers.databases import DUMP_TO_SIZE, QUERY_DEADLINE_S, reason_of, require_as_made
from tasks.drivers.host_shell import SystemShell
from tasks.errors import CommandFailed, DumpFailed, RestoreFailed
from tasks.model.databases import DumpCommand
from tasks.model.manifest import DumpRecord
from tasks.model.names import slug

_BEGIN = """
umask 077
mkdir -p -- "${1%/*}"
rm -rf -- "$1"
mkdir -- "$1"
free=$(df -B1 --output=avail -- "$1" | tail -n 1)
[ "$free" -gt "$2" ] || { echo "${1%/*} has $free bytes free, the dump may need $2 bytes" >&2; exit 75; }
"""
_RUN = """
umask 077
cd -- "$1"
shift
GBS_DUMP_FOLDER=$PWD
export GBS_DUMP_FOLDER
exec nice -n 10 "$@"
"""
_CHECK = """
cd -- "$1"
[ -f "$2" ] || { echo "it made no file $2" >&2; exit 1; }
[ -s "$2" ] || { echo "it made an empty file $2" >&2; exit 1; }
file=$1/$2
shift 2
[ $# = 0 ] || nice -n 10 "$@" "$file" >&2
sync -- "$file"
stat -c %s -- "$file"
sha256sum -- "$file"
"""
_PUBLISH = """
rm -rf -- "$2.old"
[ ! -e "$2" ] || mv -T -- "$2" "$2.old"
mv -T -- "$1" "$2"
rm -rf -- "$2.old"
"""


def dump(
    shell: SystemShell, asked: DumpCommand, last_size_bytes: int, folder: str, deadline_s: float
) -> tuple[DumpRecord, ...]:
    """Run the command in a new folder below `folder`; its files replace the old ones when all of them are good.

    Raises DumpFailed when there is no room for as much as last time, when the command fails, or when a file is missing,
    empty or does not pass the check.
    """
    final = str(PurePosixPath(folder, "command", slug(asked.label)))
    partial = f"{final}.partial"
    called = f"command {asked.label!r} on {shell.name}"
    try:
        room = str(int(last_size_bytes * DUMP_TO_SIZE))
        shell.run(_script(_BEGIN, partial, room), deadline_s=QUERY_DEADLINE_S, name="dump folder")
        shell.run_to_end(_script(_RUN, partial, *asked.command), deadline_s=deadline_s, name="dump command")
        records = []
        for name in asked.produces:
            command = _script(_CHECK, partial, name, *asked.check)
            lines = shell.run(command, deadline_s=deadline_s, name="dump check").stdout.splitlines()
            records.append(_record(asked, str(PurePosixPath(final, name)), lines[-2:]))
        shell.run(_script(_PUBLISH, partial, final), deadline_s=QUERY_DEADLINE_S, name="dump folder")
    except (CommandFailed, ValueError) as exc:
        raise DumpFailed(called, reason_of(exc)) from exc
    return tuple(records)


def restore(shell: SystemShell, asked: DumpCommand, dumps: Sequence[DumpRecord], deadline_s: float) -> None:
    """Run the command that brings the files back, when each is as it was made; RestoreFailed when there is none."""
    called = f"command {asked.label!r} on {shell.name}"
    folder = str(PurePosixPath(dumps[0].path).parent)
    if not asked.restore:
        raise RestoreFailed(called, f"its files came back to {folder}: bring them back by hand, no restore is declared")
    try:
        for made in dumps:
            require_as_made(shell, made, called, deadline_s)
        shell.run_to_end(_script(_RUN, folder, *asked.restore), deadline_s=deadline_s, name="restore command")
    except CommandFailed as exc:
        raise RestoreFailed(called, reason_of(exc)) from exc


def _script(text: str, *arguments: str) -> list[str]:
    return ["sh", "-euc", text, "gbs", *arguments]


def _record(asked: DumpCommand, path: str, lines: Sequence[str]) -> DumpRecord:
    size_bytes, line = lines
    return DumpRecord(
        engine="command",
        kind="database",
        database=asked.label,
        path=path,
        size_bytes=int(size_bytes),
        sha256=line.lstrip("\\")[:64],
    )
