"""A process that opens a window, copies and closes it, and dies by SIGKILL at the journal record that it is told.

It reaches the lab's host without ssh (through the namespaces of its process 1) and is forked from a server that has
imported everything, so that the many crash tests are quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import multiprocessing
import os
import shlex
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tasks.drivers import backup_api, libvirt_host, process
from tasks.drivers.image_order import Order
from tasks.drivers.journal import Journal
from tasks.drivers.libvirt_host import Host
from tasks.drivers.shut_off import shut_off
from tasks.drivers.snaplive import open_window
from tasks.drivers.snaplive_settle import close_window, reconcile
from tasks.drivers.ssh import Output
from tasks.errors import CommandFailed
from tasks.model.image_method import Wishes
from tasks.model.ssh_target import SshTarget
from tasks.model.window import Phase, Step, WindowPlan
from tests.lab.kvm_host import KvmHost
from tests.lab.process import LabError, ProcessRecord
from tests.lab.tiny_guest import last_record

MIN_FREE_BYTES = 1 << 20
WRITTEN = ".written"
"""After the journal's path: the file with the last record at the death of QEMU."""
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


@dataclasses.dataclass
class ChildTask:
    """What the process does (window, backup, off or reconcile), and where it dies: step, phase, target, when."""

    host_pid: int
    vm: str
    run: str
    journal: str
    verb: str = "window"
    kill_at: tuple[str, str, str, str] | None = None
    folder: str = ""
    victim: str = "self"
    """Who dies there: self, libvirtd, qemu, or everything (the host with all that runs on it, and we)."""


class NamespaceShell:
    """A shell inside the lab's host."""

    def __init__(self, host_pid: int) -> None:
        self.enter = ["nsenter", f"--target={host_pid}", "--mount", "--pid", "--uts", "--wd=/", "--"]

    def run(
        self, command: Sequence[str] | str, *, deadline_s: float, check: bool = True, name: str | None = None
    ) -> Output:
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        called = name or shlex.join(argv)
        done = process.run([*self.enter, *argv], deadline_s=deadline_s, accept=lambda status: True, name=called)
        if check and done.status != 0:
            raise CommandFailed(called, done.status, done.stderr)
        return Output(done.status, done.text, done.stderr)


class MortalJournal(Journal):
    """A journal that kills its process before or after it has written a certain record."""

    kill_at: tuple[str, str, str, str] | None = None
    kill: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGKILL)

    def append(
        self, step: Step, phase: Phase = "done", target: str = "", note: str = "", plan: WindowPlan | None = None
    ) -> None:
        here = (step.value, phase, target)
        self._die((*here, "before"))
        super().append(step, phase, target, note, plan)
        self._die((*here, "after"))

    def finish(self, note: str = "") -> None:
        self._die(("DONE", "done", "", "before"))
        super().finish(note)

    def _die(self, here: tuple[str, str, str, str]) -> None:
        if here == self.kill_at:
            self.kill_at = None
            self.kill()


def host_pid(kvm_host: KvmHost) -> int:
    """The process 1 of a lab host."""
    record = ProcessRecord.load(kvm_host.directory / "host.json")
    assert record is not None
    return record.pid


@contextmanager
def reach(pid: int) -> Iterator[tuple[Host, NamespaceShell]]:
    """libvirt and a shell of the lab host, without ssh."""
    with libvirt_host.connect(None, f"qemu:///system?socket=/proc/{pid}/root/run/libvirt/libvirt-sock") as host:
        host.local_uri = "qemu:///system"
        yield host, NamespaceShell(pid)


@dataclasses.dataclass
class Ended:
    """How a process ended; a negative return code is the signal that ended it."""

    returncode: int | None
    stderr: str


def run_child(task: ChildTask) -> Ended:
    """Run a task in a process of its own to its end."""
    with tempfile.NamedTemporaryFile() as stderr:
        child = _processes.Process(target=perform, args=(task, stderr.name))
        child.start()
        child.join(120)
        if child.is_alive():
            child.kill()
            child.join()
            raise TimeoutError(f"{task.verb} of {task.vm} did not end")
        return Ended(child.exitcode, stderr.read().decode(errors="replace"))


def kill(task: ChildTask, shell: NamespaceShell) -> None:
    """SIGKILL the victim; with QEMU's death, what the guest had written goes into a file beside the journal."""
    if task.victim in ("qemu", "everything"):
        time.sleep(0.3)  # an overlay that is new gets its first records
    pid_files = {"libvirtd": "/run/libvirtd.pid", "qemu": f"/run/libvirt/qemu/{task.vm}.pid"}
    if task.victim in pid_files:
        shell.run(["sh", "-c", 'kill -9 "$(cat "$1")"', "sh", pid_files[task.victim]], deadline_s=10)
    if task.victim == "everything":
        os.kill(task.host_pid, signal.SIGKILL)
        time.sleep(0.1)
    if task.victim in ("qemu", "everything"):
        Path(f"{task.journal}{WRITTEN}").write_text(str(last_written(Path(task.folder), task.vm)))
    if task.victim in ("self", "everything"):
        os.kill(os.getpid(), signal.SIGKILL)


def last_written(images: Path, vm: str) -> int:
    """The last record on a guest's first disk, as its base has it or as an overlay over that base has it."""
    base = images / f"{vm}-vda.qcow2"
    found = [last_record(base, "qcow2")]
    for overlay in images.glob(f"{glob.escape(base.name)}.gbs-*[0-9]"):
        with contextlib.suppress(LabError):  # left by the guest, which wrote on in the base: it hides records of that
            found.append(last_record(overlay, "qcow2", base))
    return max(found)


def perform(task: ChildTask, stderr: str) -> None:
    """Do the task in this process."""
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND), 2)
    with reach(task.host_pid) as (host, shell):
        journal = MortalJournal(Path(task.journal))
        journal.kill_at = tuple(task.kill_at) if task.kill_at else None  # type: ignore[assignment]
        journal.kill = lambda: kill(task, shell)
        if task.verb == "reconcile":
            reconcile(host, shell, journal)
            return
        if task.verb == "off":
            domain = host.domain(task.vm)
            with shut_off(shell, journal, domain, task.run, deadline_s=30, work_deadline_s=60, force=False):
                return
        if task.verb == "backup":
            nowhere = SshTarget("nowhere", "127.0.0.1", "root", 1, Path("/dev/null"), Path("/dev/null"))
            folder, wishes = Path(task.folder), Wishes(min_free_bytes=MIN_FREE_BYTES)
            uuid = host.domain(task.vm).uuid
            backup_api.take(Order(host, shell, nowhere, journal, uuid, task.run, folder, wishes))
            return
        window = open_window(host, shell, journal, task.vm, task.run, min_free_bytes=MIN_FREE_BYTES)
        for disk in window.disks:
            with journal.step(Step.COPY, disk.target):
                shell.run(["cp", "--sparse=always", disk.base, f"{disk.base}.copy"], deadline_s=60)
        close_window(host, shell, journal)
