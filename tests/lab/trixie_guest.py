"""The tests of images in a guest whose kernel, libvirt and QEMU are those of Debian 13.

`python3 -m tests.lab.trixie_guest [pytest's arguments]`, as root, prints what pytest prints and ends with its exit
status; without arguments it runs TESTS. The kernel is Debian 13's User-mode Linux, which needs no KVM: one processor,
the machine's own root below, read-only (so the checkout and its virtual environment are there), a disk above it that is
gone afterwards. libvirt and QEMU are newer_host.py's. A system call costs many times what it does on the machine, so
the guest's clock runs SLOWER times slower: tests and GBS keep their deadlines, and wait that much longer.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.lab import newer_host
from tests.lab.accelerator import cache_folder
from tests.lab.leftovers import LABS, sweep
from tests.lab.nfs_guest import preloaded
from tests.lab.process import LabError, ProcessRecord
from tests.lab.progress import phase

TESTS = (
    "test_snaplive", "test_snaplive_crash", "test_snaplive_faults", "test_methods", "test_backup_api", "test_migration",
    "test_nbd", "test_uefi_guest",
)  # fmt: skip
SLOWER = 8
_DISK_BYTES = 20 << 30
_SCRIPTS = Path(__file__).parent / "uml"
_CHECKOUT = Path(__file__).parents[2]

_COMMAND = """\
cd {checkout}
export GBS_LAB_CACHE={cache} GBS_LAB_HOST_TREE={tree}
echo "kernel $(uname -r); programs of the KVM hosts from {tree}"
{pytest} </dev/null
echo $? >/mnt/shared/status
"""


def kernel() -> Path:
    """The folder of the kernel and its modules, fetched when it is not there."""
    folder = cache_folder() / f"uml-{newer_host.SUITE}"
    if folder.exists():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    argv = ["mmdebstrap", "--mode=root", "--variant=extract", "--include=user-mode-linux", newer_host.SUITE]
    with (cache_folder() / "mmdebstrap-uml.log").open("wb") as log, phase(f"kernel of {newer_host.SUITE}"):
        done = subprocess.run([*argv, str(partial)], stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise LabError(f"mmdebstrap: exit {done.returncode}; see {log.name}")
    (partial / "lib").mkdir(exist_ok=True)
    (partial / "lib/modules").symlink_to("../usr/lib/uml/modules")  # where modprobe --dirname looks
    partial.rename(folder)
    return folder


def run_tests(arguments: Sequence[str]) -> int:
    """Run pytest in a guest that is made for it and gone afterwards; its exit status (LabError when there is none)."""
    sweep()
    trees = [str(kernel()), str(newer_host.tree())]
    folder = LABS / f"test-trixie-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        _prepare(folder, arguments)
        # The kernel of the guest and its processes take turns: on one core that takes half the time.
        cores = sorted(os.sched_getaffinity(0))
        argv = ["taskset", "--cpu-list", str(cores[os.getpid() % len(cores)]), "unshare", "--mount", "--pid", "--fork"]
        argv += ["--kill-child", "--propagation=private", str(_SCRIPTS / "boot.sh"), *trees, str(folder)]
        _run(folder, [*argv, str(_SCRIPTS / "init.sh"), str(SLOWER)])
        return int((folder / "status").read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        raise LabError("the guest ended before pytest did") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(folder: Path, arguments: Sequence[str]) -> None:
    """What the guest finds: its disk, its clock and its command."""
    color = "yes" if sys.stdout.isatty() else "no"
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--color={color}"]
    pytest += arguments or ["-q", *(f"tests/lab/{name}.py" for name in TESTS)]
    command = _COMMAND.format(
        checkout=shlex.quote(str(_CHECKOUT)),
        cache=shlex.quote(str(cache_folder())),
        tree=shlex.quote(str(newer_host.tree())),
        pytest=shlex.join(pytest),
    )
    (folder / "command").write_text(command, encoding="utf-8")
    with (folder / "disk").open("wb") as file:
        file.truncate(_DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(folder / "disk")], check=True)
    for name in ("slow_clock", "whole_xstate"):
        preloaded(folder, name)


def _run(folder: Path, argv: Sequence[str]) -> None:
    """Run the guest to its end; it is gone when this returns, whatever happens."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as guest:
        try:
            ProcessRecord.of(guest.pid).save(folder / "host.json")  # for sweep, should this process be killed
            guest.wait()
        finally:
            guest.kill()


if __name__ == "__main__":
    try:
        sys.exit(run_tests(sys.argv[1:]))
    except LabError as error:
        sys.exit(str(error))
