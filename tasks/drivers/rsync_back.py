"""rsync the other way: files of a night to a folder of this server or of a client, with all that was kept of them."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tasks.drivers import rsync
from tasks.drivers.rsync import EXACT_TIMES, STALL_S, OnProgress, Transferred
from tasks.model.file_recovery import Placed
from tasks.model.platform import PROFILES, Platform
from tasks.model.ssh_target import SshTarget, ssh_argv

_ITEM = re.compile(rb"([<>ch.][fdLDS]\S{7,9}) (.*)", re.S)
_ONLY_TIMES = re.compile(rb"\.d\.\.[tT.]\.+")
"""A folder whose times alone differ: whatever was put into it changes those."""


@dataclass(frozen=True)
class Return:
    """What goes back: names below a folder of the night's tree, to the same folder below `folder` of the target."""

    tree: Path
    placed: Placed
    folder: str
    target: SshTarget | None = None
    fake_super: bool = False
    """The owners, devices and xattrs of the tree are in rsync's xattr."""
    compare: bool = False
    """Files that are there already are compared by their content: one of the same size and time may be damaged."""
    backup_folder: str | None = None
    """Where what is replaced goes, at the target; without it nothing may be in the way."""


def argv(given: Return, *, dry_run: bool) -> list[str]:
    """The command; a dry run prints a line for each thing that is there and is not the same, and copies nothing."""
    words = ["rsync", *PROFILES[Platform.LINUX].rsync_options, "--relative", EXACT_TIMES, f"--timeout={STALL_S}"]
    words += ["--checksum"] if given.compare else []
    if given.fake_super:
        # Of a local copy the option is for both sides, unless the other one is told otherwise (rsync(1)).
        words += ["--fake-super"] + ([] if given.target else ["-M--super"])
    if dry_run:
        words += ["--dry-run", "--existing", "--out-format=%i %n"]
    else:
        words += ["--no-human-readable", "--stats", "--info=progress2", "--outbuf=N"]
        if given.backup_folder:
            words += ["--backup", f"--backup-dir={_below(given.backup_folder, given.placed.anchor)}"]
    destination = f"{_below(given.folder, given.placed.anchor)}/"
    if given.target is not None:
        words += ["-e", shlex.join(ssh_argv(given.target))]
        destination = f"{rsync.host_word(given.target.address)}:{destination}"
    tree = _below(str(given.tree), given.placed.anchor)
    return [*words, "--", *(f"{tree}/./{name}" for name in given.placed.names), destination]


def _below(folder: str, path: str) -> str:
    return f"{folder.rstrip('/')}/{path}".rstrip("/")


def differing(given: Return, *, deadline_s: float, watch: Callable[[], None] | None = None) -> list[str]:
    """What is there and is not the same, in rsync's words: its code of what differs, and the name, escaped."""
    found: list[bytes] = []
    _transfer(given, True, deadline_s, None, watch, found.append)
    items = [item for line in found if (item := _ITEM.fullmatch(line)) and not _ONLY_TIMES.fullmatch(item[1])]
    front = f"{given.placed.anchor}/" if given.placed.anchor else ""
    return [f"{item[1].decode()} /{front}{item[2].decode('utf-8', 'backslashreplace')}" for item in items]


def copy(
    given: Return, *, deadline_s: float, on_progress: OnProgress, watch: Callable[[], None] | None = None
) -> Transferred:
    """Copy; errors as `rsync.pull`."""
    return _transfer(given, False, deadline_s, on_progress, watch, None)


def _transfer(
    given: Return,
    dry_run: bool,
    deadline_s: float,
    on_progress: OnProgress | None,
    watch: Callable[[], None] | None,
    on_line: Callable[[bytes], None] | None,
) -> Transferred:
    where = given.target.name if given.target else given.folder
    local = Path(given.folder)
    return rsync.transfer(argv(given, dry_run=dry_run), where, local, deadline_s, on_progress, watch, on_line=on_line)
