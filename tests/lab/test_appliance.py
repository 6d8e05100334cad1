"""An image updated with a night's files holds exactly these: a tar of the result is compared by other tools."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import guestfs
import pytest

from tasks.drivers import appliance, appliance_worker
from tasks.drivers.appliance import DiskFile
from tasks.errors import (
    CommandFailed,
    ConfigError,
    GbsError,
    IntegrityError,
    SourceRefused,
    StoreError,
    StoreFilled,
)
from tasks.model.image_update import MountedBy
from tests.lab.engine_bench import Bench

_MIB = 1 << 20
_DEVICES = {"/": "/dev/vg0/root", "/boot": "/dev/sda1", "/var": "/dev/vg0/var"}
_KEEP = ["/proc/*", "/run/*", "/boot/grub/i386-pc", "/var/lib/db/*"]
_ODD = [b"new\nline", b"not-utf8-\xff\xfe", b"-rf", b"star*[x]", b" blank "]
pytestmark = pytest.mark.timeout(900)


@contextlib.contextmanager
def _handle(image: Path, *, readonly: bool) -> Iterator[Any]:
    os.environ.update(appliance.appliance_environment(os.environ))
    handle = guestfs.GuestFS(python_return_dict=True)
    with contextlib.closing(handle):
        handle.add_drive_opts(str(image), format="qcow2", readonly=readonly)
        handle.launch()
        yield handle
        if not readonly:
            handle.umount_all()
            handle.shutdown()


def _mount(handle: Any) -> None:
    for place, device in _DEVICES.items():
        if place != "/" and not handle.exists(place):
            handle.mkdir(place)
        handle.mount(device, place)


def _run(*argv: str | Path | bytes, **options: Any) -> bytes:
    done: subprocess.CompletedProcess[bytes] = subprocess.run(argv, check=True, capture_output=True, **options)
    return done.stdout


def _tree_a(root: Path) -> None:
    """A client's files: every kind that a file system can hold."""
    for name in (
        "boot/grub/i386-pc",
        "var/lib/db",
        "var/log",
        "etc",
        "usr/bin",
        "home/a",
        "proc",
        "run",
        "srv/gone",
    ):
        (root / name).mkdir(parents=True)
    (root / "boot/vmlinuz-1").write_bytes(os.urandom(_MIB))
    (root / "usr/bin/su").write_text("su")
    (root / "usr/bin/su").chmod(0o4755)
    (root / "usr/bin/ping").write_text("ping")
    _run("setcap", "cap_net_raw+ep", root / "usr/bin/ping")
    (root / "etc/passwd").write_text("root:x:0:0\n")
    (root / "etc/link").symlink_to("/etc/passwd")
    (root / "home/a/file").write_text("a")
    os.chown(root / "home/a/file", 12345, 54321)
    _run("setfacl", "-m", "u:4711:rw,g:4712:r", root / "home/a/file")
    _run("setfacl", "-d", "-m", "u:4711:rwx", root / "home/a")
    _run("setfattr", "-n", "user.note", "-v", "first", root / "home/a/file")
    _run("setfattr", "-n", "trusted.note", "-v", "t", root / "etc/passwd")
    for one, other in (
        ("usr/bin/one", "home/two"),
        ("var/log/one", "var/lib/two"),
        ("boot/one", "boot/grub/two"),
    ):
        (root / one).write_text(one)
        os.link(root / one, root / other)
    with (root / "var/sparse").open("wb") as file:
        file.seek(64 * _MIB)
        file.write(b"end")
    os.mkfifo(root / "run.fifo")
    os.mknod(root / "home/null", 0o20666, os.makedev(1, 3))
    os.mknod(root / "home/block", 0o60660, os.makedev(7, 9))
    for odd in _ODD:
        Path(os.fsdecode(os.fsencode(root / "home") + b"/" + odd)).write_bytes(odd)


def _change_to_b(root: Path) -> None:
    """The next night: changed, deleted, added; same size and second, other nanoseconds; links and kinds changed."""
    stamp = (root / "etc/passwd").stat().st_mtime_ns // 10**9 * 10**9
    (root / "etc/passwd").write_text("root:x:1:1\n")
    os.utime(root / "etc/passwd", ns=(stamp, stamp + 999_999_999))
    (root / "boot/vmlinuz-1").unlink()
    (root / "boot/vmlinuz-2").write_bytes(os.urandom(2 * _MIB))
    (root / "var/log/new").write_text("new")
    (root / "srv/gone").rmdir()
    (root / "home/two").unlink()
    (root / "home/two").write_text("alone now")
    os.link(root / "usr/bin/su", root / "home/su-too")
    os.chown(root / "usr/bin/one", 7, 8)
    _run("setcap", "cap_net_admin+ep", root / "usr/bin/one")
    _run("setfacl", "-b", root / "home/a/file")
    _run("setfattr", "-n", "user.note", "-v", "second", root / "home/a/file")
    (root / "etc/link").unlink()
    (root / "etc/link").mkdir()
    (root / "etc/link/inside").write_text("a folder now")
    (root / "home/-rf").unlink()
    (root / "var/lib/db/not-from-here").write_text("never restored")


@pytest.fixture(name="lab", scope="module")
def _lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[MountedBy]]:
    folder = tmp_path_factory.mktemp("appliance")
    image, tree, archive = folder / "base.qcow2", folder / "tree", folder / "a.tar"
    _tree_a(tree)
    (tree / "var/lib/db/rows").write_text("the image's own")
    (tree / "boot/grub/i386-pc/core").write_text("the image's own")
    _run("tar", "-C", tree, "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-Scf", archive, ".")
    (tree / "var/lib/db/rows").unlink()
    (tree / "boot/grub/i386-pc/core").unlink()
    _run("qemu-img", "create", "-q", "-f", "qcow2", image, "1G")
    with _handle(image, readonly=False) as handle:
        handle.part_init("/dev/sda", "gpt")
        handle.part_add("/dev/sda", "p", 2048, 206847)
        handle.part_add("/dev/sda", "p", 206848, 2097152 - 2048)
        handle.pvcreate("/dev/sda2")
        handle.vgcreate("vg0", ["/dev/sda2"])
        handle.lvcreate("root", "vg0", 400)
        handle.lvcreate("var", "vg0", 400)
        for place, kind in (("/boot", "ext4"), ("/", "ext4"), ("/var", "xfs")):
            handle.mkfs(kind, _DEVICES[place])
        _mount(handle)
        handle.tar_in(str(archive), "/", xattrs=True, acls=True)
        systems = [MountedBy(place, handle.vfs_uuid(dev), handle.vfs_type(dev)) for place, dev in _DEVICES.items()]
    _change_to_b(tree)
    return image, tree, systems


def _overlay(base: Path, name: str) -> Path:
    image = base.with_name(name)
    image.unlink(missing_ok=True)
    _run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image)
    return image


def _update(image: Path, systems: list[MountedBy], source: Path, keep: list[str] = _KEEP) -> appliance.UpdateResult:
    seen: list[float] = [time.monotonic()]
    result = appliance.update_files(
        [DiskFile(image, "qcow2")],
        systems,
        source,
        keep=keep,
        deadline_s=600,
        on_progress=lambda *_: seen.append(time.monotonic()),
    )
    assert max(later - earlier for earlier, later in itertools.pairwise(seen)) < 30
    return result


def _facts(root: Path) -> dict[str, bytes]:
    """What ls, getfacl, getfattr and sha256sum say about a tree; kept paths and ext4's lost+found left out."""
    left_out = (
        r"find . -mindepth 1 -name lost+found -prune -o -path './proc/*' -prune -o -path './run/*' -prune -o"
        r" -path './boot/grub/i386-pc' -prune -o -path './var/lib/db/*' -prune -o "
    )
    # Of a folder, neither its size nor its link count: lost+found is in one of them.
    printed = r"\( -type d -printf '%p|%y|%m|%U|%G|%T@\0' -o -printf '%p|%y|%m|%U|%G|%l|%n|%s|%T@\0' \)"
    devices = r"\( -type b -o -type c \) -exec stat -c '%n %t %T' {} +"
    attributes = "-print0 | sort -z | xargs -0 getfattr -h -d -m -"
    return {
        "find": b"\0".join(sorted(_run("sh", "-c", left_out + printed, cwd=root).split(b"\0"))),
        "devices": _run("sh", "-c", f"{left_out} {devices} | sort", cwd=root),
        "acl": _run("sh", "-c", f"{left_out} -print0 | sort -z | xargs -0 getfacl -Pn", cwd=root),
        "xattrs": _run("sh", "-c", left_out + attributes, cwd=root),
        "content": _run("sh", "-c", f"{left_out} -type f -print0 | sort -z | xargs -0 sha256sum", cwd=root),
        "links": b"\n".join(sorted(_links(root))),
    }


def _links(root: Path) -> Iterator[bytes]:
    inodes: dict[tuple[int, int], list[bytes]] = {}
    for folder, _, names in os.walk(os.fsencode(root)):
        for name in names:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if status.st_nlink > 1:
                inodes.setdefault((status.st_dev, status.st_ino), []).append(os.path.relpath(path, os.fsencode(root)))
    return (b"=".join(sorted(paths)) for paths in inodes.values())


def test_update_gives_exactly_the_night_and_a_second_one_sends_nothing(
    lab: tuple[Path, Path, list[MountedBy]], tmp_path: Path
) -> None:
    base, tree, systems = lab
    before = hashlib.sha256(base.read_bytes()).hexdigest()
    image = _overlay(base, "updated.qcow2")
    first = _update(image, systems, tree)
    assert first.files_changed > 5
    assert first.files_deleted == 3  # vmlinuz-1, srv/gone, -rf
    again = _update(image, systems, tree)
    print(first, again)
    assert (again.files_changed, again.files_deleted) == (0, 0)
    assert again.bytes_sent < 100_000
    _run("qemu-img", "check", image)
    assert hashlib.sha256(base.read_bytes()).hexdigest() == before
    _require_night(image, tree, tmp_path)


def _require_night(image: Path, tree: Path, folder: Path) -> None:
    """Whether the image holds exactly the tree, and its own files where these are kept."""
    out, archive = folder / "out", folder / "out.tar"
    out.mkdir()
    with _handle(image, readonly=True) as handle:
        for place, device in _DEVICES.items():
            handle.mount_ro(device, place)
        handle.tar_out("/", str(archive), xattrs=True, acls=True, numericowner=True)
        # What a tar may not show, from the file system itself.
        assert handle.lstatns("/etc/passwd")["st_mtime_nsec"] == 999_999_999
        assert handle.lstatns("/var/sparse")["st_blocks"] < 1000
    _run("tar", "-C", out, "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-xpf", archive)
    assert (out / "var/lib/db/rows").read_text() == "the image's own"
    assert not (out / "var/lib/db/not-from-here").exists()
    assert (out / "boot/grub/i386-pc/core").read_text() == "the image's own"
    found, wanted = _facts(out), _facts(tree)
    for what, text in wanted.items():
        assert found[what] == text, what


def test_night_that_only_a_vendors_application_has_is_brought_into_the_image(
    lab: tuple[Path, Path, list[MountedBy]], tmp_path: Path
) -> None:
    base, tree, systems = lab
    (tmp_path / "engine").mkdir()
    bench = Bench("command", tmp_path / "engine")
    made = tmp_path / "made"
    _run("cp", "-a", tree, made)
    bench.tree(1, made)
    assert bench.sync_and_rotate() == ["daily"]
    _run("rm", "-r", bench.source)
    image = _overlay(base, "from-a-vendor.qcow2")
    with bench.opened("daily.0") as folder:
        assert _update(image, systems, folder / "data").files_changed > 5
    assert not any(bench.store.opened("web1").glob("*"))
    _require_night(image, tree, tmp_path)


def test_unknown_uuid_is_refused_and_the_image_is_unchanged(lab: tuple[Path, Path, list[MountedBy]]) -> None:
    base, tree, systems = lab
    image = _overlay(base, "unknown.qcow2")
    before = image.read_bytes()
    strange = [*systems, MountedBy("/srv", "11111111-2222-3333-4444-555555555555", "xfs")]
    with pytest.raises(IntegrityError, match="11111111-2222-3333-4444-555555555555"):
        _update(image, strange, tree)
    assert image.read_bytes() == before


def test_source_without_the_files_of_a_file_system_is_refused(
    lab: tuple[Path, Path, list[MountedBy]], tmp_path: Path
) -> None:
    base, _, systems = lab
    (tmp_path / "etc").mkdir()
    (tmp_path / "var").mkdir()
    with pytest.raises(SourceRefused, match="/var"):
        _update(_overlay(base, "refused.qcow2"), systems, tmp_path)


@pytest.mark.parametrize("pattern", ["", "a\0b"])
def test_pattern_that_rsync_cannot_have_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(ConfigError):
        _update(tmp_path / "none", [MountedBy("/", "u", "ext4")], tmp_path, keep=[pattern])


def test_killed_parent_leaves_no_qemu(lab: tuple[Path, Path, list[MountedBy]]) -> None:
    base, tree, systems = lab
    image = _overlay(base, "killed.qcow2")
    code = (
        "from pathlib import Path, PosixPath; from tasks.drivers.appliance import DiskFile, update_files;"
        "from tasks.model.image_update import MountedBy;"
        f"update_files([DiskFile({image!r}, 'qcow2')], {systems!r}, {tree!r}, keep=[], deadline_s=300,"
        "on_progress=print)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    _until(lambda: _processes_with(str(image), "qemu"), 60)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _until(lambda: not _processes_with(str(image), ""), 120)


def _until(condition: Any, deadline_s: float) -> None:
    ends_at = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.1)


def _processes_with(word: str, program: str) -> list[str]:
    lines = _run("ps", "-eo", "args", "-ww").decode("utf-8", "replace").splitlines()
    return [line for line in lines if word in line and program in line.split()[0]]


def _fails(kind: str) -> None:
    if kind == "full":
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")
    if kind == "program":
        subprocess.run(["no-such-program"], check=True)
    name = None if kind == "nameless" else "/night/data"
    raise OSError(errno.EPERM if kind == "forbidden" else errno.EIO, "said so", *([name] if name else []))


@pytest.mark.parametrize(
    ("kind", "expected", "words"),
    [
        ("unreadable", StoreError, "store /night/data: cannot be read or written: said so"),
        ("full", StoreFilled, "store /scratch has no room: No space left on device; look at df"),
        ("nameless", CommandFailed, "libguestfs on a.raw failed with status 1: said so"),
        ("forbidden", CommandFailed, "libguestfs on a.raw failed with status 1: /night/data: said so"),
        ("program", CommandFailed, "libguestfs on a.raw failed with status 1: no-such-program: No such file"),
    ],
)
def test_error_of_the_system_is_one_of_the_store_only_when_it_is(
    kind: str,
    expected: type[GbsError],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(appliance_worker._ANSWERS, "shape", lambda *_: _fails(kind))
    request = {"do": "shape", "disks": [("a.raw", "raw")], "folder": "/scratch", "source": "/night"}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
    assert appliance_worker.main() == 1
    lines = appliance._Lines(lambda *_: None)
    lines.take(capsys.readouterr().out.encode())
    assert type(lines.error) is expected
    assert words in str(lines.error)
