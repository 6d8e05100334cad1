"""A guest with two sites, each of which exports a file system by NFSv4.2 to the other; tests run inside it.

The machine's kernel has no NFS. Debian's User-mode Linux has: it boots on the machine's own root, read-only, so the
checkout and its virtual environment are there; nfs_*cases.py say what runs in it. Both sites are network namespaces of
the guest, and a cable between them, which a test may pull out.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab.accelerator import cache_folder
from tests.lab.leftovers import LABS, sweep
from tests.lab.process import LabError, ProcessRecord

KERNEL = Path("/usr/bin/linux.uml")
MODULES = Path("/usr/lib/uml/modules")
_MODULES = ("xfs", "nfsd", "nfsv4", "veth")
_DISK_BYTES = 4 << 30
_SCRIPTS = Path(__file__).parent / "uml"
_CHECKOUT = Path(__file__).parents[2]
_COMMAND = """\
cd {checkout}
bash {scripts}/sites.sh || exit
nsenter --net=/run/netns/near {program} </dev/null
echo $? >/mnt/shared/status
"""


def run_tests(arguments: Sequence[str], report: Path) -> int:
    """Run pytest in a guest that is made for it and gone afterwards: its exit status, and its JUnit `report`.

    Raises LabError when the guest ends before pytest does.
    """
    pytest = ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    pytest += ["-p", "tests.lab.nfs_sites"]  # its fixtures
    pytest += ["--junitxml=/mnt/shared/report.xml", "--color=no", *arguments]
    with guest_folder(report.stem) as folder:
        status = run_near(folder, pytest)
        shutil.copy(folder / "report.xml", report)
        return status


@contextmanager
def guest_folder(name: str) -> Iterator[Path]:
    """A folder for a guest, which has it as /mnt/shared; it goes with all that is in it."""
    sweep()
    folder = LABS / f"test-nfs-{name}-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_near(folder: Path, arguments: Sequence[str], modules: Sequence[str] = ()) -> int:
    """Run Python at the near site of a guest that is made for it, with more kernel `modules`: its exit status.

    What it says is printed when it has ended. Raises LabError when the guest ends before.
    """
    if not KERNEL.exists():
        raise LabError(f"{KERNEL} is missing: make system")
    (folder / "modules/lib").mkdir(parents=True)
    (folder / "modules/lib/modules").symlink_to(MODULES)  # where modprobe --dirname looks
    command = _COMMAND.format(
        checkout=shlex.quote(str(_CHECKOUT)),
        scripts=shlex.quote(str(_SCRIPTS)),
        program=shlex.join([sys.executable, *arguments]),
    )
    (folder / "command").write_text(command, encoding="utf-8")
    with (folder / "disk").open("wb") as file:
        file.truncate(_DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(folder / "disk")], check=True)
    _boot(folder, [*_MODULES, *modules])
    if not (folder / "status").exists():
        said = (folder / "console").read_text(errors="replace")
        raise LabError(f"the guest ended before {shlex.join(arguments[:2])} did: {said[-2000:]}")
    return int((folder / "status").read_text(encoding="ascii"))


def preloaded(folder: Path, name: str) -> Path:
    """A library of the folder uml, built in `folder`, for LD_PRELOAD; LabError when it cannot be."""
    library = folder / f"{name}.so"
    argv = ["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", str(library), str(_SCRIPTS / f"{name}.c")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{name}.c: {done.stderr}")
    return library


def _boot(folder: Path, modules: Sequence[str]) -> None:
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation=private"]
    argv += ["env", "-i", f"HOME={folder}", "TMPDIR=/dev/shm", f"LD_PRELOAD={preloaded(folder, 'whole_xstate')}"]
    argv += [str(KERNEL)]
    argv += ["mem=1G", "root=/dev/root", "rootfstype=hostfs", "hostfs=/", "ro", f"init={_SCRIPTS}/init.sh"]
    argv += [f"ubda={folder}/disk", f"uml_dir={folder}", "con=null", "con0=null,fd:1", "quiet", "panic=-1"]
    argv += [f"gbs_kernel={folder}/modules", f"gbs_folder={folder}", f"gbs_modules={','.join(modules)}"]
    with (
        (folder / "console").open("wb") as console,
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=console, stderr=console) as guest,
    ):
        try:
            ProcessRecord.of(guest.pid).save(folder / "host.json")  # for sweep, should this process be killed
            guest.wait()
        finally:
            guest.kill()
    sys.stdout.write((folder / "console").read_text(errors="replace"))


if __name__ == "__main__":
    try:
        sys.exit(run_tests(sys.argv[1:], cache_folder() / "nfs-report.xml"))
    except LabError as error:
        sys.exit(str(error))
