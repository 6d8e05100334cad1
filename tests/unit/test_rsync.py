"""rsync: command lines that nothing a client controls can bend, and what its failures become."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.drivers import rsync
from tasks.drivers.rsync import Wanted, pull_argv
from tasks.errors import AccessDenied, CommandFailed, GbsError, SourceRefused, StoreFilled, TransferInterrupted
from tests.unit.test_ssh_target import target

HOSTILE = ["/a b", "/$(id)", "/a;b", "/`id`", "/-rf", "/--delete", "/'\"", "/a\nb", "/*", "/é\udcff", "/\\"]


def fake(folder: Path, name: str, code: str) -> None:
    """A program in `folder` that runs `code` in Python."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport json, os, sys\n{code}\n")
    path.chmod(0o755)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.parametrize("path", HOSTILE)
def test_pull_argv_keeps_a_hostile_path_behind_the_options(path: str) -> None:
    argv = pull_argv(
        target(), Wanted(["/etc", path], exclude=["--x", path], link_dests=[Path("/l" + path)]), Path("/store/x")
    )
    end = argv.index("--")
    assert argv[end + 1 :] == ["web1:/etc", f":{path}", "/store/x/"]
    assert [f"--exclude={path}", "--exclude=--x"] == sorted(
        (arg for arg in argv[:end] if "exclude=" in arg), reverse=path > "--x"
    )
    assert f"--link-dest=/l{path}" in argv[:end]


@pytest.mark.parametrize(
    ("address", "host"),
    [("web1", "web1"), ("10.0.0.1", "10.0.0.1"), ("::1", "[::1]"), ("fe80::1%eth0", "[fe80::1%eth0]")],
)
def test_pull_argv_brackets_ipv6(address: str, host: str) -> None:
    assert f"{host}:/etc" in pull_argv(target(address=address), Wanted(["/etc"]), Path("/s"))


def test_pull_argv_has_what_a_faithful_copy_needs() -> None:
    argv = pull_argv(target(), Wanted(["/"]), Path("/s"))
    assert {"--archive", "--hard-links", "--acls", "--xattrs", "--sparse", "--numeric-ids"} <= set(argv)
    assert {"--one-file-system", "--relative"} <= set(argv)
    assert not {"--inplace", "--ignore-errors", "--force"} & set(argv)


def test_pull_argv_limits_the_bandwidth_only_if_asked() -> None:
    argv = pull_argv(target(), Wanted(["/"]), Path("/s"))
    assert not [word for word in argv if "bwlimit" in word]
    assert "--bwlimit=512" in pull_argv(target(), Wanted(["/"], limit_kib_s=512), Path("/s"))


def test_rsync_starts_ssh_with_the_words_that_were_meant(bin_folder: Path, tmp_path: Path) -> None:
    """rsync splits the -e string by its own rules, not by a shell's."""
    said = tmp_path / "said"
    fake(bin_folder, "ssh", f"json.dump(sys.argv[1:], open({str(said)!r}, 'w')); sys.exit(255)")
    odd = target(address="fe80::1%eth0", private_key_file=Path('/my keys/o\'key "1"'))
    with pytest.raises(TransferInterrupted):
        rsync.pull(odd, Wanted(["/etc", "/a b;$(id)"]), tmp_path / "to", deadline_s=20)
    argv = json.loads(said.read_text())
    from tasks.model.ssh_target import ssh_argv

    wanted = ssh_argv(odd)[1:]
    assert argv[: len(wanted)] == wanted
    assert argv[len(wanted) :][:2] == ["fe80::1%eth0", "rsync"]
    # ssh joins the words with spaces, and the remote shell takes them apart again.
    script = " ".join(argv[len(wanted) + 1 :]).replace("rsync", 'printf "%s\\n"', 1)
    words = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert words[-2:] == ["/etc", "/a b;$(id)"]


@pytest.mark.parametrize(
    ("status", "stderr", "error", "word"),
    [
        (255, "ssh: connect to host x: Connection refused", TransferInterrupted, "255"),
        (255, "Host key verification failed.", AccessDenied, "known_hosts"),
        (255, "root@x: Permission denied (publickey,password).", AccessDenied, "login failed"),
        (12, "connection unexpectedly closed", TransferInterrupted, "interrupted"),
        (30, "", TransferInterrupted, "interrupted"),
        (11, "rsync: write failed: No space left on device (28)", StoreFilled, "no room: No space left"),
        (11, "rsync: mkstemp failed: Disk quota exceeded (122)", StoreFilled, "no room: Disk quota exceeded"),
        (23, "rsync: opendir /x failed: Permission denied (13)", CommandFailed, "23"),
        (25, "Deletions stopped due to --max-delete limit", SourceRefused, "web 1"),
        (1, "syntax", CommandFailed, "status 1"),
        (99, "", CommandFailed, "99"),
    ],
)
def test_failure_of_rsync_becomes_its_error(
    bin_folder: Path, tmp_path: Path, status: int, stderr: str, error: type[GbsError], word: str
) -> None:
    fake(bin_folder, "rsync", f"sys.stderr.write({stderr!r}); sys.exit({status})")
    with pytest.raises(error, match=word) as caught:
        rsync.pull(target(), Wanted(["/"]), tmp_path / "to", deadline_s=20)
    assert type(caught.value) is error


STATS = """
Number of files: 12 (reg: 5, dir: 7)
Number of regular files transferred: 3
Number of deleted files: 1
Total file size: 1048576 bytes
Total bytes sent: 44
Total bytes received: 5555
"""


def test_vanished_files_are_told(bin_folder: Path, tmp_path: Path) -> None:
    progress = "sys.stdout.write('\\r  100  10%  1MB/s\\r  1000 100%'); sys.stdout.flush();"
    fake(
        bin_folder,
        "rsync",
        f"{progress} print({STATS!r}); sys.stderr.write('file has vanished: \"/x\"\\n'); sys.exit(24)",
    )
    seen: list[tuple[int, int | None]] = []
    moved = rsync.pull(
        target(), Wanted(["/"]), tmp_path / "to", deadline_s=20, on_progress=lambda *step: seen.append(step)
    )
    assert (moved.files, moved.changed, moved.deleted, moved.size_bytes) == (12, 3, 1, 1 << 20)
    assert (moved.sent_bytes, moved.received_bytes) == (44, 5555)
    assert moved.vanished == ('file has vanished: "/x"',)
    assert seen[-1] == (1000, 1000)


def test_pull_copies_hostile_names_and_links_what_did_not_change(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real rsync on both ends; `ssh` runs the remote half here."""
    monkeypatch.chdir(tmp_path)
    fake(
        bin_folder, "ssh", "rest = sys.argv[sys.argv.index('web1') + 1:]; os.execvp('sh', ['sh', '-c', ' '.join(rest)])"
    )
    source = tmp_path / "client $(touch pwned)"
    source.mkdir()
    for name in ("plain", "-rf", "a b", "a\nb", "$(id)", "é"):
        (source / name).write_text(name)
    (source / "left-out").write_text("x")
    first, second = tmp_path / "1", tmp_path / "2"
    moved = rsync.pull(target(), Wanted([str(source)], exclude=["left-out"]), first, deadline_s=30)
    again = Wanted([str(source)], exclude=["left-out"], link_dests=[first], limit_kib_s=512)
    rsync.pull(target(), again, second, deadline_s=30)
    copied = second / str(source).lstrip("/")
    assert {path.name: path.read_text() for path in copied.iterdir()} == {
        name: name for name in ("plain", "-rf", "a b", "a\nb", "$(id)", "é")
    }
    assert all(path.stat().st_nlink == 2 for path in copied.iterdir())
    assert moved.changed == 6
    assert not list(tmp_path.rglob("pwned"))


def test_file_written_again_within_the_second_is_seen(tmp_path: Path) -> None:
    source, first, second = tmp_path / "client", tmp_path / "1", tmp_path / "2"
    source.mkdir()
    for name, text in (("same", "as it was"), ("again", "as it was")):
        (source / name).write_text(text)
        os.utime(source / name, ns=(0, 1_700_000_000_100_000_000))
    rsync.pull(source, Wanted(["/"]), first, deadline_s=30)
    (source / "again").write_text("ENCRYPTED")
    os.utime(source / "again", ns=(0, 1_700_000_000_100_000_001))
    moved = rsync.pull(source, Wanted(["/"], link_dests=[first]), second, deadline_s=30)
    assert (moved.changed, (second / "again").read_text()) == (1, "ENCRYPTED")
    assert (first / "again").read_text() == "as it was"
    assert (second / "same").samefile(first / "same")
