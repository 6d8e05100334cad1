"""A KVM host in namespaces of its own: private libvirt, private sshd, the network shared with the machine."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.lab.process import LabError, ProcessRecord
from tests.lab.sshd import Sshd, wait_for_banner

_INIT = Path(__file__).parent / "host" / "init.sh"
_HOOK = Path(__file__).parent / "host" / "qemu-hook"
_PRIVATE = ("etc/libvirt", "var/lib/libvirt", "var/log/libvirt", "var/cache/libvirt")

_QEMU_CONF = """
# The lab: no control groups, so that a host that is killed leaves nothing under /sys/fs/cgroup.
cgroup_controllers = []
"""
_LIBVIRTD_CONF = """
# The lab: no polkit runs here, and each host needs an identity of its own.
auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "{host_uuid}"
"""


def _tree() -> str:
    """The root file system that hosts have their programs from (newer_host.py); empty for the machine's own."""
    return os.environ.get("GBS_LAB_HOST_TREE", "")


@dataclasses.dataclass
class KvmHost:
    """A KVM host below `directory`; `authorized_key` (a public key's line) may log in as root.

    Its world ends with its process 1, which `stop` kills; its files stay below `directory` until `remove`.
    """

    name: str
    directory: Path
    authorized_key: str
    _unshare: subprocess.Popen[bytes] | None = dataclasses.field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.sshd = Sshd(self.directory / "sshd", self.authorized_key)

    @property
    def ssh_port(self) -> int:
        """The port of its sshd on 127.0.0.1; 0 before the first start."""
        return self.sshd.port

    @property
    def known_hosts_line(self) -> str:
        """Its line for known_hosts(5)."""
        return self.sshd.known_hosts_line

    @property
    def images(self) -> Path:
        """Where the machine sees the host's /var/lib/libvirt/images."""
        return self.directory / "root/var/lib/libvirt/images"

    def uri(self, ssh_command: Path) -> str:
        """The libvirt URI for a client on the machine; `ssh_command` is an ssh that knows key and known_hosts."""
        return f"qemu+ssh://root@127.0.0.1:{self.ssh_port}/system?command={ssh_command}&no_tty=1"

    @property
    def _record(self) -> Path:
        return self.directory / "host.json"

    def running(self) -> bool:
        """Whether its process 1 lives."""
        record = ProcessRecord.load(self._record)
        return record is not None and record.alive()

    def start(self) -> None:
        """Start it, or take over the one that runs; returns when libvirtd and sshd answer (LabError after 30 s)."""
        if self.running() and self.run(["test", "-e", "/run/lab-host-ready"], check=False).returncode == 0:
            self.sshd.prepare()
            return
        self.stop()
        self._prepare()
        self._spawn()
        end = time.monotonic() + 30
        while self.run(["test", "-e", "/run/lab-host-ready"], check=False).returncode != 0:
            if not self.running() or time.monotonic() > end:
                self.stop()
                raise LabError(f"KVM host {self.name} did not come up; see {self.directory}/init.log")
            time.sleep(0.05)
        if not wait_for_banner(self.ssh_port, 10):
            self.stop()
            raise LabError(f"the sshd of KVM host {self.name} does not answer; see {self.directory}/init.log")

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

    def run(
        self, argv: Sequence[str], *, check: bool = True, input_text: str | None = None, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the host as root; LabError with its stderr when it fails and `check` is set."""
        record = ProcessRecord.load(self._record)
        if record is None or not record.alive():
            raise LabError(f"KVM host {self.name} is not running")
        enter = ["nsenter", f"--target={record.pid}", "--mount", "--pid", "--uts", "--wd=/", "--"]
        done = subprocess.run(
            [*enter, *argv],
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

    def virsh(self, *args: str, input_text: str | None = None, timeout_s: float = 120) -> str:
        """Run virsh on the host's qemu:///system and return what it wrote; LabError when it fails."""
        argv = ["virsh", "--quiet", "--connect", "qemu:///system", *args]
        return self.run(argv, input_text=input_text, timeout_s=timeout_s).stdout

    def forward(self, mac: str, port: int, guest_port: int = 22) -> None:
        """Let 127.0.0.1:port reach guest_port of the guest with that network card, from its next start."""
        forwards = self.directory / "root/etc/libvirt/hooks/lab-forwards"
        others = [line for line in forwards.read_text(encoding="ascii").splitlines() if not line.startswith(mac)]
        forwards.write_text("\n".join([*others, f"{mac} {port} {guest_port}"]) + "\n", encoding="ascii")

    def kill_libvirtd(self) -> None:
        """SIGKILL libvirtd; guests go on running."""
        self._end_libvirtd("KILL")

    def restart_libvirtd(self) -> None:
        """End libvirtd in good order (when it runs) and start it again; returns when it answers."""
        self._end_libvirtd("TERM")
        self.run(["libvirtd", "-d"])
        self.virsh("version")

    def _end_libvirtd(self, signal_name: str) -> None:
        script = """
            pid=$(cat /run/libvirtd.pid 2>/dev/null) || exit 0
            [ "$(cat /proc/$pid/comm 2>/dev/null)" = libvirtd ] || exit 0
            kill -$1 $pid
            for _ in $(seq 300); do
                case "$(cut -d' ' -f3 /proc/$pid/stat 2>/dev/null)" in ''|Z) exit 0;; esac; sleep 0.1
            done; exit 1
        """
        self.run(["sh", "-c", script, "sh", signal_name])

    def _prepare(self) -> None:
        """Make its files where missing; what is there (domains, images, port, keys) stays."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.sshd.prepare()
        root = self.directory / "root"
        if root.exists():
            return
        partial = self.directory / "root.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for path in _PRIVATE:
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            # Images and domains of the machine stay the machine's; folders, owners and modes come along.
            argv = ["rsync", "-a", "--exclude=/qemu/*.xml", "--exclude=/qemu/autostart", "--exclude=/images/*"]
            argv += ["--exclude=/qemu/networks/autostart/*", "--exclude=/qemu/domain-*", "--exclude=/qemu/*/*/"]
            argv += ["--exclude=/secrets/*", "--exclude=/storage/*", "--exclude=*.log"]
            subprocess.run([*argv, f"{_tree()}/{path}/", f"{partial / path}/"], check=True)
        (partial / "etc/hostname").write_text(f"{self.name}\n", encoding="ascii")
        configuration = partial / "etc/libvirt"
        with (configuration / "qemu.conf").open("a", encoding="utf-8") as file:
            file.write(_QEMU_CONF)
        with (configuration / "libvirtd.conf").open("a", encoding="utf-8") as file:
            file.write(_LIBVIRTD_CONF.format(host_uuid=uuid.uuid4()))
        (configuration / "hooks").mkdir(exist_ok=True)
        shutil.copy(_HOOK, configuration / "hooks/qemu")
        (configuration / "hooks/lab-forwards").touch()
        (partial / "var/lib/libvirt/images").mkdir(mode=0o711, exist_ok=True)
        partial.rename(root)

    def _spawn(self) -> None:
        """Start process 1; its record is on disk before it may do anything."""
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts"]
        argv += ["--propagation=private", str(_INIT), self.name, str(self.directory), _tree()]
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
