"""Which accelerator the probe settles for, with a stand-in for QEMU that answers the boot sector and the kernel."""

import os
from pathlib import Path
from typing import Any

import pytest

from tasks.drivers import kvm_probe

STAND_IN = """#!/bin/sh
case "$*" in
*-kernel*) {kernel} ;;
*) {sector} ;;
esac
"""


@pytest.fixture
def works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The probe's answer on a machine whose QEMU does what is asked for."""
    (tmp_path / "vmlinuz-1").touch()
    monkeypatch.setattr(kvm_probe, "_KERNELS", ((str(tmp_path), "vmlinuz-*"),))
    monkeypatch.setattr(kvm_probe, "_KERNEL_DEADLINE_S", 0.5)
    monkeypatch.setattr(kvm_probe, "_SECTOR_DEADLINE_S", 0.5)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(os, "access", lambda *_: True)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def answer(sector: str, kernel: str) -> bool:
        qemu = tmp_path / "qemu-system-x86_64"
        qemu.write_text(STAND_IN.format(sector=sector, kernel=kernel))
        qemu.chmod(0o755)
        kvm_probe.kvm_works.cache_clear()
        try:
            return kvm_probe.kvm_works()
        finally:
            kvm_probe.kvm_works.cache_clear()

    return answer


@pytest.mark.parametrize(
    ("sector", "kernel", "expected"),
    [
        ("exit 3", "exit 0", True),
        ("exit 3", "sleep 60", False),
        ("exit 3", "exit 1", False),
        ("sleep 60", "exit 0", False),
        ("exit 0", "exit 0", False),
        ("kill -ABRT $$", "exit 0", False),
    ],
)
def test_kvm_must_run_a_sector_and_a_kernel(works: Any, sector: str, kernel: str, expected: bool) -> None:
    assert works(sector, kernel) is expected


def test_without_a_kernel_the_sector_decides(works: Any, tmp_path: Path) -> None:
    (tmp_path / "vmlinuz-1").unlink()
    assert works("exit 3", "exit 1") is True
    assert works("exit 1", "exit 0") is False
