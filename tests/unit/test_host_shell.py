"""Several commands in one round trip, and qemu-img with hostile names, on this machine's own shell."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.drivers import host_files, qemu_img
from tasks.drivers.host_shell import LocalShell, run_each
from tasks.errors import CommandFailed, IntegrityError
from tasks.model.window import Layer

HOSTILE = ["-rf", "--help", "a;b", "a$(touch owned)", "`id`", "<x>", "'\"", "a b\nc", "nbd:x", "json:{}", "é,file=x"]
shell = LocalShell()


def test_run_each_keeps_outputs_errors_and_statuses_apart() -> None:
    outputs = run_each(
        shell, [["printf", "a\\nb"], ["sh", "-c", "echo e >&2; exit 3"], ["cat"], ["echo", "$HOME;id"]], deadline_s=9
    )
    assert [(o.status, o.stdout, o.stderr) for o in outputs] == [
        (0, "a\nb", ""),
        (3, "", "e"),
        (0, "", ""),
        (0, "$HOME;id\n", ""),
    ]
    assert run_each(shell, [], deadline_s=1) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_files_with_hostile_names_are_only_data(tmp_path: Path, name: str) -> None:
    base, overlay = tmp_path / name, tmp_path / f"{name}.gbs-run"
    base.write_bytes(b"x" * 65536)
    shell.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(overlay)], deadline_s=30)
    header = qemu_img.info(shell, str(overlay), "qcow2")
    assert (header.backing, header.backing_format, header.virtual_size_bytes) == (str(base), "raw", 65536)
    with pytest.raises(IntegrityError, match="backing file"):
        qemu_img.require_complete(header)
    qemu_img.commit(shell, str(overlay), [Layer(path=str(base), format="raw")], deadline_s=30)
    file, missing = host_files.stat_files(shell, [str(base), str(tmp_path / "none")])
    assert file is not None
    assert (file.inode, file.size_bytes) == (base.stat().st_ino, 65536)
    assert missing is None
    host_files.rename(shell, str(overlay), f"{overlay}.trash")
    with pytest.raises(CommandFailed):
        host_files.rename(shell, str(base), f"{overlay}.trash")
    host_files.remove(shell, [str(base)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.gbs-run.trash"]


def test_raw_disk_with_a_qcow2_header_is_not_probed(tmp_path: Path) -> None:
    secret, disk = tmp_path / "secret", tmp_path / "disk"
    secret.write_bytes(b"s" * 512)
    shell.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(disk)], deadline_s=30)
    found = qemu_img.info(shell, str(disk), "raw")
    assert (found.format, found.backing) == ("raw", None)


def test_image_that_is_none_or_is_truncated_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"no image at all")
    with pytest.raises(CommandFailed):
        qemu_img.info(shell, str(image), "qcow2")
    shell.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "64M"], deadline_s=30)
    shell.run(["qemu-io", "-f", "qcow2", "-c", "write 0 8M", str(image)], deadline_s=30)
    qemu_img.check(shell, str(image), "qcow2", deadline_s=30)
    with image.open("r+b") as file:
        file.truncate(300_000)
    with pytest.raises((IntegrityError, CommandFailed)):
        qemu_img.check(shell, str(image), "qcow2", deadline_s=30)


def test_relative_path_is_refused() -> None:
    with pytest.raises(CommandFailed, match="absolute"):
        qemu_img.info(shell, "nbd:unix:/tmp/x", "raw")


def test_progress_of_convert_is_read_from_its_last_words() -> None:
    assert qemu_img.parse_progress(b"    (0.00/100%)\r    (41.20/100%)\r") == 41.2
    assert qemu_img.parse_progress(b"(4") is None
    argv = qemu_img.convert_argv("/a", "raw", "/b", "qcow2", shared=True)
    assert argv == ["qemu-img", "convert", "-p", "-U", "-f", "raw", "-O", "qcow2", "--", "/a", "/b"]
