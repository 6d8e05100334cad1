"""The lab guest's first night, kept from one test run to the next.

An emulated guest takes two minutes and more to send its 12,000 files. With what an earlier run got from the same image
laid where an interrupted pull leaves its tree, the first night resumes from there, and sends what is new. Without it,
and in the demo, everything travels.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tasks.drivers.store import Store
from tests.lab.accelerator import cache_folder
from tests.lab.guest_image import instance_image
from tests.lab.lab import Lab
from tests.lab.site import Site

_PREFIX = "night-"


def _kept(lab: Lab) -> Path:
    image = instance_image("web1", lab.public_key, lab.directory / "web1_host_key", lambda _line: None)
    return cache_folder() / f"{_PREFIX}{image.stem}"


def lay_out(site: Site) -> bool:
    """Put the kept files where web1's pull resumes from; False when there are none."""
    kept = _kept(site.lab)
    if not kept.exists():
        return False
    aborted = Store(site.store).aborted("web1")
    aborted.mkdir(parents=True)
    subprocess.run(["cp", "--archive", "--reflink=auto", str(kept), str(aborted / "data")], check=True)
    return True


def keep(site: Site) -> None:
    """Keep web1's files of this night for the next run, in place of those of other images."""
    kept = _kept(site.lab)
    if kept.exists():
        return
    for other in cache_folder().glob(f"{_PREFIX}*"):
        shutil.rmtree(other)
    for left in cache_folder().glob(f".{_PREFIX}*.partial-*"):
        if not os.path.exists(f"/proc/{left.name.rpartition('-')[2]}"):
            shutil.rmtree(left)
    partial = kept.with_name(f".{kept.name}.partial-{os.getpid()}")
    source = Store(site.store).overnight("web1") / "data"
    subprocess.run(["cp", "--archive", "--reflink=auto", str(source), str(partial)], check=True)
    try:
        partial.rename(kept)
    except OSError:  # another run was first
        shutil.rmtree(partial)
