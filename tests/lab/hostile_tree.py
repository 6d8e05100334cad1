"""A tree with every type of file and with names that break what is careless."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

NAMES = (
    b"-rf", b"--delete", b" lead", b"trail ", b"new\nline", b"tab\t", b"esc\x1b[31m", b"\xff\xfe not UTF-8", b"*", b"?",
    b"[a]", b"'", b'"', b"$(touch pwned)", b"`id`", b";|&", b"back\\slash", b"\\#012", b"#hash", b"%41", b"~",
    b"n" * 255,
)  # fmt: skip
LONGEST_PATH = 4095


def make_tree(root: Path) -> None:
    """Fill `root`: types, owners, modes, links, holes, ACLs, xattrs, a capability, names, the longest path."""
    names = os.path.join(os.fsencode(root), b"names")
    os.mkdir(names)
    for name in NAMES:
        Path(os.fsdecode(os.path.join(names, name))).write_bytes(name)
    os.makedirs(os.path.join(os.fsencode(root), b"folder \xfe", b"\n"))
    kinds = root / "kinds"
    kinds.mkdir()
    (kinds / "empty").touch()
    with (kinds / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"in the middle")
    (kinds / "one").write_text("two names")
    os.link(kinds / "one", kinds / "other")
    os.symlink("/etc/passwd", kinds / "absolute")
    os.symlink("../../../nowhere", kinds / "dangling")
    os.mkfifo(kinds / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(kinds / "socket"))
    os.mknod(kinds / "null", 0o20666, os.makedev(1, 3))
    os.mknod(kinds / "loop", 0o60660, os.makedev(7, 0))
    for text in ("setuid", "locked"):
        (kinds / text).write_text(text)
    (kinds / "sticky").mkdir()
    for text, mode, owner in (("setuid", 0o4755, 0), ("locked", 0o000, 1234), ("sticky", 0o1777, 99999)):
        os.chown(kinds / text, owner, owner + 1)
        (kinds / text).chmod(mode)
    for argv in (
        ["setfacl", "-m", "u:4321:rwx,g:8765:r", "one"],
        ["setfacl", "-d", "-m", "u:4321:rx", "sticky"],
        ["setfattr", "-n", "user.note", "-v", "0x00ff0a", "one"],
        ["setfattr", "-n", "security.selinux", "-v", "system_u:object_r:etc_t:s0", "empty"],
        ["setcap", "cap_net_raw+ep", "setuid"],
    ):
        subprocess.run(argv, cwd=kinds, check=True)
    _make_long_path(root)
    # rsync takes times of the same second for equal: what it makes now must not be as old as what it copies.
    touch = ["touch", "--no-dereference", "--date=@1700000000.123456789", "--"]
    subprocess.run(["find", ".", "-depth", "-execdir", *touch, "{}", "+"], cwd=root, check=True)


def _make_long_path(root: Path) -> None:
    """A file whose absolute path is as long as Linux allows, made step by step as no call takes it whole."""
    left = LONGEST_PATH - len(os.fsencode(root.resolve()))
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    while left > 0:
        length = min(200, left - 1)
        if 0 < left - 1 - length < 2:
            length -= 2
        name, left = "d" * length, left - 1 - length
        if left == 0:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=handle))
            break
        os.mkdir(name, dir_fd=handle)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)


def looks(root: Path) -> bytes:
    """What find, getfacl, getfattr and getcap say of all of it; sizes of folders are the file system's own."""
    script = r"""
        find . -mindepth 1 \( -type d -printf '%P %y %m %U %G %T@\0' -o -printf '%P %y %m %U %G %s %T@ %n %l\0' \) |
            sort -z | tr '\0' '\n'
        find . -type f -links +1 -printf '%i %P\n' | sort | awk '{ print $1 == last, $2; last = $1 }'
        find . -not -path '*ddd/*' -print0 | sort -z | xargs -0 getfacl -n -p
        find . -not -path '*ddd/*' -print0 | sort -z | xargs -0 getfattr -h -d -m - -e hex
        getcap -r kinds
    """
    return subprocess.run(["bash", "-c", script], cwd=root, capture_output=True, check=True).stdout
