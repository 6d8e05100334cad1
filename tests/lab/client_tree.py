"""The root file system that clients of the lab share: Debian 12 with servers of databases and a router."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.lab.accelerator import cache_folder
from tests.lab.guest_build import locked
from tests.lab.process import LabError
from tests.lab.progress import Say, phase, say

PACKAGES = (
    "openssh-server", "rsync", "procps", "util-linux", "mount", "e2fsprogs", "acl", "attr", "libcap2-bin", "xz-utils",
    "postgresql", "mariadb-server", "redis-server", "slapd", "ldap-utils", "sqlite3",
    "frr", "iproute2",
)  # fmt: skip


def client_tree(tell: Say = say) -> Path:
    """The folder of the current recipe, made when it is not there; those of other recipes are removed."""
    tree = cache_folder() / f"client-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]}"
    with locked("client"):
        if not tree.exists():
            for other in cache_folder().glob("client-*/"):
                shutil.rmtree(other)
            _make(tree.with_name(f"{tree.name}.partial"), tell)
            tree.with_name(f"{tree.name}.partial").rename(tree)
    return tree


def _make(tree: Path, tell: Say) -> None:
    argv = ["mmdebstrap", "--mode=root", "--variant=apt", f"--include={','.join(PACKAGES)}"]
    argv += ['--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io"]
    argv += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"]
    argv += ["--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/lib/x86_64-linux-gnu/libLLVM-*"]
    with (cache_folder() / "mmdebstrap-client.log").open("wb") as log, phase("database client: packages", tell):
        done = subprocess.run(
            [*argv, "bookworm", str(tree)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            check=False,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
    if done.returncode != 0:
        shutil.rmtree(tree, ignore_errors=True)
        raise LabError(f"mmdebstrap: exit {done.returncode}; see {log.name}")
