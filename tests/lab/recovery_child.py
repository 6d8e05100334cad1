"""A process that brings a VM to the lab's host as the flow does, and dies by SIGKILL before the call that it is told.

Every command on the host, every call of libvirt and every write of the record counts as a call.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tasks.drivers import recovery_put
from tasks.drivers.digest import sha256_file
from tasks.drivers.host_files import boot_id
from tasks.drivers.host_shell import HostShell, LocalShell
from tasks.drivers.libvirt_host import Host
from tasks.drivers.recovery_put import Ledger
from tasks.drivers.ssh import Output
from tasks.drivers.store import Store
from tasks.model.recovery_plan import Plan
from tasks.model.recovery_record import PutRecord, record_of
from tests.lab.window_child import reach


@dataclasses.dataclass
class Recovery:
    """What is brought back: the plan, the definition, and the folders with disks and parts; `kill_before` a call."""

    host_pid: int
    store: Path
    plan: Plan
    xml: str
    run: str
    files: dict[str, Path]
    """By role; what is below `own` may be linked."""
    own: Path
    kill_before: int | None = None
    verb: str = "recover"

    @property
    def ledger(self) -> Ledger:
        """Its record."""
        return Ledger(Store(self.store), self.plan.kvm_host, self.plan.identity.uuid)


class _Mortal:
    """Counts calls, and kills this process before one of them."""

    def __init__(self, kill_before: int | None) -> None:
        self.left = kill_before

    def call(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which counts."""

        def counting(*args: Any, **options: Any) -> Any:
            self.call()
            return function(*args, **options)

        return counting


class _MortalShell:
    def __init__(self, shell: HostShell, mortal: _Mortal) -> None:
        self.shell, self.mortal = shell, mortal

    def run(
        self, command: Sequence[str] | str, *, deadline_s: float, check: bool = True, name: str | None = None
    ) -> Output:
        self.mortal.call()
        return self.shell.run(command, deadline_s=deadline_s, check=check, name=name)


class _MortalLedger(Ledger):
    mortal: _Mortal

    def write(self, record: PutRecord) -> PutRecord:
        self.mortal.call()
        return super().write(record)

    def end(self) -> None:
        self.mortal.call()
        super().end()


def perform(task: Recovery) -> None:
    """Do it in this process."""
    mortal = _Mortal(task.kill_before)
    with reach(task.host_pid) as (host, plain):
        host.call = mortal.counted(host.call)  # type: ignore[method-assign]
        shell = _MortalShell(plain, mortal)
        ledger = _MortalLedger(Store(task.store), task.plan.kvm_host, task.plan.identity.uuid)
        ledger.mortal = mortal
        if task.verb == "clear":
            recovery_put.clear(host, shell, ledger)
            return
        put(task, host, shell, ledger)


def put(task: Recovery, host: Host, shell: HostShell, ledger: Ledger) -> None:
    """The steps, as the flow takes them."""
    ledger.write(record_of(task.plan, task.run, "web1", "image", "night"))

    def send(source: Path, path: str) -> int:
        shell.run(["cp", "--sparse=always", "--", str(source), path], deadline_s=60)
        return source.stat().st_size

    for place in task.plan.places:
        source = task.files[place.role]
        ours = boot_id(LocalShell()) if source.parent == task.own else None
        recovery_put.place_file(shell, ledger, place, source, sha256_file(source), send, boot_id=ours)
    if task.plan.isolated:
        recovery_put.isolate(host, ledger)
    pools = [place.volume.partition("/")[0] for place in task.plan.disks if place.volume]
    recovery_put.define_and_start(host, ledger, task.xml, pools, autostart=False)
