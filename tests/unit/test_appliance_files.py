"""Files out of an image whose file systems cannot all be mounted: no word of what is below is believed."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.drivers import appliance_channel, appliance_files
from tasks.errors import NothingToRecover, RecoveryRefused


class Guest:
    """A handle of a guest whose /var cannot be mounted, and that has nothing in any folder."""

    def inspect_os(self) -> list[str]:
        return ["/dev/sda1"]

    def inspect_get_mountpoints(self, _root: str) -> dict[str, str]:
        return {"/": "/dev/sda1", "/var": "/dev/sda2"}

    def mount_ro(self, _device: str, place: str) -> None:
        if place == "/var":
            raise RuntimeError("mount: bad superblock")

    def exists(self, _path: str) -> bool:
        return False


@pytest.mark.parametrize(
    ("path", "problem", "said"),
    [
        ("var/lib/app/db", RecoveryRefused, "file system at /var could not be mounted: mount: bad superblock"),
        ("var", RecoveryRefused, "file system at /var could not be mounted"),
        ("various/db", NothingToRecover, "there is no such file"),
    ],
)
def test_path_in_a_file_system_that_cannot_be_mounted_is_not_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str, problem: type[Exception], said: str
) -> None:
    monkeypatch.setattr(appliance_files, "launched", lambda *_, **__: contextlib.nullcontext(Guest()))
    monkeypatch.setattr(appliance_channel.Channel, "prepare", lambda *_, **__: [])
    request = {"disks": [["vda.raw", "raw"]], "folder": str(tmp_path), "destination": str(tmp_path)}
    reporter: Any = SimpleNamespace(now=lambda _: None)
    with pytest.raises(problem, match=said):
        appliance_files.send({**request, "fake_super": False, "paths": [path]}, reporter)
