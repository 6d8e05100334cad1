"""A newer libvirt and QEMU for the lab's KVM hosts: those of Debian 13, beside the machine's own.

python3 -m tests.lab.newer_host prints a folder; with GBS_LAB_HOST_TREE=<that folder> before pytest, every KVM host of
the lab runs Debian 13's programs. Its kernel is the machine's, its users are the machine's; trixie_guest.py runs the
same in a guest of Debian 13's kernel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.lab.accelerator import cache_folder
from tests.lab.process import LabError
from tests.lab.progress import phase

SUITE = "trixie"
PACKAGES = (
    "libvirt-daemon-system", "libvirt-clients", "qemu-system-x86", "qemu-utils", "openssh-server", "rsync", "ovmf",
    "swtpm", "swtpm-tools", "procps", "iproute2", "mount", "util-linux", "hostname", "e2fsprogs",
    "virtnbdbackup",
)  # fmt: skip


def tree() -> Path:
    """The root file system, made when it is not there."""
    folder = cache_folder() / f"host-{SUITE}"
    if folder.exists():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    argv = ["mmdebstrap", "--mode=root", "--variant=essential", f"--include={','.join(PACKAGES)}"]
    argv += ['--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io"]
    argv += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"]
    with (cache_folder() / "mmdebstrap-host.log").open("wb") as log, phase(f"packages of {SUITE}"):
        done = subprocess.run(
            [*argv, SUITE, str(partial)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            check=False,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
    if done.returncode != 0:
        raise LabError(f"mmdebstrap: exit {done.returncode}; see {log.name}")
    partial.rename(folder)
    return folder


if __name__ == "__main__":
    try:
        print(tree())
    except LabError as error:
        sys.exit(str(error))
