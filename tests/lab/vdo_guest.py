"""A guest that is Debian 13 with its own kernel, which has VDO, and an empty disk: vdo_cases.py runs in it.

The machine's kernel has no device mapper, and User-mode Linux no VDO. QEMU boots Debian's kernel on a file system that
mmdebstrap made, without services; the checkout comes on a disk, as a tar, and what is answered by a serial port.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.lab.accelerator import accelerator, cache_folder
from tests.lab.guest_build import building, locked
from tests.lab.leftovers import LABS, sweep
from tests.lab.process import LabError, ProcessRecord
from tests.lab.progress import phase

PACKAGES = (
    "linux-image-cloud-amd64", "kmod", "udev", "mount", "util-linux", "procps", "lvm2", "vdo", "xfsprogs", "rsync",
    "rsnapshot", "python3", "python3-click", "python3-rich", "python3-pydantic", "python3-yaml", "python3-pandas",
    "python3-pytest", "python3-pytest-timeout", "iproute2",
)  # fmt: skip
DISK = "/dev/vdb"
_DISK_BYTES = 10 << 30
_ROOT_BYTES = 2 << 30
DEADLINE_S = 1500
_INIT = Path(__file__).parent / "vdo/init.sh"
_CHECKOUT = Path(__file__).parents[2]
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/perl/*/unicore/*")


def guest() -> Path:
    """The folder with its kernel, initrd and root, made when it is not there."""
    recipe = hashlib.sha256(repr((PACKAGES, _LEFT_OUT, _ROOT_BYTES)).encode() + _INIT.read_bytes()).hexdigest()[:16]
    folder = cache_folder() / f"vdo-{recipe}"
    with locked("vdo"):
        if not folder.exists():
            for other in cache_folder().glob("vdo-*[0-9a-f]"):
                shutil.rmtree(other)
            with building("vdo") as partial:
                _build(partial)
                (partial / "made").rename(folder)
    return folder


def _build(partial: Path) -> None:
    tree, made = partial / "tree", partial / "made"
    made.mkdir()
    argv = ["mmdebstrap", "--mode=root", "--variant=apt", f"--include={','.join(PACKAGES)}"]
    argv += ['--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io"]
    argv += [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT]
    with (cache_folder() / "mmdebstrap-vdo.log").open("wb") as log, phase("guest with VDO: packages of trixie"):
        done = subprocess.run(
            [*argv, "trixie", str(tree)], stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False
        )
    if done.returncode != 0:
        raise LabError(f"mmdebstrap: exit {done.returncode}; see {log.name}")
    shutil.copy(_INIT, tree / "gbs-init")
    (tree / "gbs-init").chmod(0o755)
    for name in ("vmlinuz", "initrd.img"):
        (found,) = tree.glob(f"boot/{name}-*")
        found.rename(made / name)
    with (made / "root").open("wb") as file:
        file.truncate(_ROOT_BYTES)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(made / "root")], check=True)


@contextlib.contextmanager
def run(command: str, deadline_s: float = DEADLINE_S) -> Iterator[Path]:
    """Run a command of bash in the checkout, as root of a new guest; the folder that it had as `answer`.

    Its empty disk is DISK. LabError when the guest ends without an answer.
    """
    parts = guest()
    sweep()
    folder = LABS / f"test-vdo-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        _pack(folder / "checkout", command)
        with (folder / "disk").open("wb") as file:
            file.truncate(_DISK_BYTES)
        _boot(parts, folder, deadline_s)
        (folder / "answer").mkdir()
        argv = ["tar", "-xf", str(folder / "answer.tar"), "-C", str(folder / "answer")]
        if subprocess.run(argv, stderr=subprocess.DEVNULL, check=False).returncode != 0:
            said = (folder / "console").read_text(errors="replace")[-3000:]
            raise LabError(f"the guest ended without an answer: {said}")
        yield folder / "answer"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pack(disk: Path, command: str) -> None:
    with tarfile.open(disk, "w") as archive:
        for name in ("flows", "tasks", "blocks", "tests", "pyproject.toml"):
            archive.add(_CHECKOUT / name, arcname=name, filter=_sources)
        text = f"mkdir answer\nexport PYTHONDONTWRITEBYTECODE=1\n{command}\n".encode()
        member = tarfile.TarInfo("command")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))


def _sources(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member


def _boot(parts: Path, folder: Path, deadline_s: float) -> None:
    argv = ["qemu-system-x86_64", "-machine", f"q35,accel={accelerator()}", "-cpu", "max", "-m", "3G", "-smp", "1"]
    argv += ["-nodefaults", "-display", "none", "-no-reboot"]
    argv += ["-kernel", str(parts / "vmlinuz"), "-initrd", str(parts / "initrd.img")]
    argv += ["-append", "root=/dev/vda rw console=ttyS0 init=/gbs-init quiet mitigations=off"]
    disks = (
        (parts / "root", "snapshot=on"),
        (folder / "disk", "cache=unsafe,discard=unmap"),
        (folder / "checkout", ""),
    )
    for path, options in disks:
        argv += ["-drive", f"file={path},format=raw,if=virtio,{options}".rstrip(",")]
    argv += ["-serial", f"file:{folder}/console", "-serial", f"file:{folder}/answer.tar"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as process, phase("guest with VDO"):
        try:
            ProcessRecord.of(process.pid).save(folder / "host.json")  # for sweep, should this process be killed
            process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise LabError(f"the guest did not end in {deadline_s} s") from None
        finally:
            process.kill()


def pytest_command(arguments: Sequence[str]) -> str:
    """The command that runs pytest in it; its JUnit report is the answer's `report.xml`."""
    argv = ["python3", "-m", "pytest", "-p", "no:cacheprovider", "--noconftest", "--junitxml=answer/report.xml"]
    return shlex.join([*argv, "--color=no", "--durations=0", *arguments]) + " 2>&1 | tee answer/output"


if __name__ == "__main__":
    try:
        with run(shlex.join(sys.argv[1:]) + " >answer/output 2>&1") as answer:
            sys.stdout.write((answer / "output").read_text(errors="replace"))
    except LabError as error:
        sys.exit(str(error))
