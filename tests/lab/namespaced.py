"""A system of the lab in namespaces of its own: its mounts, processes and host name end with its process 1."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tasks.model.ssh_target import SshTarget
from tests.lab.process import LabError, ProcessRecord
from tests.lab.sshd import Sshd, wait_for_banner

START_DEADLINE_S = 30


@dataclasses.dataclass
class Namespaced:
    """A system below `directory`; `authorized_key` (a public key's line) may log in as root through its own sshd.

    It shares the machine's network. Its world ends with its process 1, which `stop` kills; its files stay below
    `directory` until `remove`. A subclass says what process 1 is and prepares its files.
    """

    name: str
    directory: Path
    authorized_key: str
    _unshare: subprocess.Popen[bytes] | None = dataclasses.field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.sshd = Sshd(self.directory / "sshd", self.authorized_key)

    @property
    def init(self) -> Sequence[str]:
        """The program that becomes process 1; it makes /run/lab-host-ready when its daemons run."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Make its files where missing; what is there stays."""
        raise NotImplementedError

    @property
    def ssh_port(self) -> int:
        """The port of its sshd on 127.0.0.1; 0 before the first start."""
        return self.sshd.port

    @property
    def known_hosts_line(self) -> str:
        """Its line for known_hosts(5)."""
        return self.sshd.known_hosts_line

    def target(self, private_key: Path) -> SshTarget:
        """How GBS reaches it."""
        return self.sshd.target(self.name, private_key)

    @property
    def _record(self) -> Path:
        return self.directory / "host.json"

    def running(self) -> bool:
        """Whether its process 1 lives."""
        record = ProcessRecord.load(self._record)
        return record is not None and record.alive()

    def start(self) -> None:
        """Start it, or take over the one that runs; returns when its daemons answer (LabError after 30 s)."""
        if self.running() and self.run(["test", "-e", "/run/lab-host-ready"], check=False).returncode == 0:
            self.sshd.prepare()
            return
        self.stop()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.sshd.prepare()
        self.prepare()
        self._spawn()
        end = time.monotonic() + START_DEADLINE_S
        while self.run(["test", "-e", "/run/lab-host-ready"], check=False).returncode != 0:
            if not self.running() or time.monotonic() > end:
                self.stop()
                raise LabError(f"{self.name} did not come up; see {self.directory}/init.log")
            time.sleep(0.05)
        if not wait_for_banner(self.ssh_port, 10):
            self.stop()
            raise LabError(f"the sshd of {self.name} does not answer; see {self.directory}/init.log")

    def stop(self) -> None:
        """Kill the host with all that runs in it (a power cut); nothing happens when it is not running."""
        record = ProcessRecord.load(self._record)
        if record is not None:
            record.kill()
        self._record.unlink(missing_ok=True)
        if self._unshare is not None:
            self._unshare.wait()
            self._unshare = None

    def remove(self) -> None:
        """Stop it and remove its files."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def enter(self) -> list[str]:
        """The words that run a command inside as root; LabError when it does not run."""
        record = ProcessRecord.load(self._record)
        if record is None or not record.alive():
            raise LabError(f"{self.name} is not running")
        return ["nsenter", f"--target={record.pid}", "--mount", "--pid", "--uts", "--root", "--wd", "--"]

    def run(
        self, argv: Sequence[str], *, check: bool = True, input_text: str | None = None, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the host as root; LabError with its stderr when it fails and `check` is set."""
        done = subprocess.run(
            [*self.enter(), *argv],
            input=input_text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: {' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
        return done

    def _spawn(self) -> None:
        """Start process 1; its record is on disk before it may do anything."""
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts"]
        argv += ["--propagation=private", *self.init]
        with (self.directory / "init.log").open("ab") as log:
            self._unshare = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"},
            )
        assert self._unshare.stdin is not None
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        end = time.monotonic() + 10
        while not (pids := children.read_text(encoding="ascii").split()):
            if time.monotonic() > end or self._unshare.poll() is not None:
                raise LabError(f"unshare failed; see {self.directory}/init.log")
            time.sleep(0.01)
        ProcessRecord.of(int(pids[0])).save(self._record)
        with self._unshare.stdin as pipe:
            pipe.write(b"go\n")
