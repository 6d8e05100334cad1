"""An sshd on a loopback port with its own keys, and the key pairs and known_hosts lines of the lab."""

from __future__ import annotations

import dataclasses
import random
import socket
import subprocess
import time
from pathlib import Path

from tasks.model.ssh_target import SshTarget
from tests.lab.process import LabError, ProcessRecord

# Below the kernel's ephemeral range (32768-60999), so that no outgoing connection takes a port between two starts.
_PORTS = range(20000, 32000)

_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {directory}/ssh_host_ed25519_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM {use_pam}
StrictModes yes
UseDNS no
PrintMotd no
X11Forwarding no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
"""


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now."""
    for port in random.sample(_PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise LabError("no free port on 127.0.0.1 between 20000 and 31999")


def make_key(path: Path, comment: str) -> str:
    """Make an ed25519 key pair at path and path.pub unless it is there; the public key's line is returned."""
    public = path.with_name(path.name + ".pub")
    if not public.exists():
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
        subprocess.run(argv, check=True)
    return public.read_text(encoding="ascii").strip()


def known_hosts_line(port: int, public_key: str) -> str:
    """The known_hosts(5) line for a key on a port of 127.0.0.1."""
    return f"[127.0.0.1]:{port} " + " ".join(public_key.split()[:2])


def wait_for_banner(port: int, deadline_s: float) -> bool:
    """Wait until an SSH server greets on 127.0.0.1:port; False past the deadline."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                if connection.recv(4) == b"SSH-":
                    return True
        except OSError:
            pass
        time.sleep(0.02)
    return False


def _root_is_locked() -> bool:
    # Without PAM sshd refuses even a key when the shadow field starts with "!" (auth.c, LOCKED_PASSWD_PREFIX).
    lines = Path("/etc/shadow").read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.startswith("root:!") for line in lines)


@dataclasses.dataclass
class Sshd:
    """One sshd: `prepare` writes its files, `start` runs it on this machine (a KVM host runs it in its namespaces)."""

    directory: Path
    authorized_key: str
    port: int = 0

    def prepare(self) -> None:
        """Make keys, port and configuration where missing; a second call keeps the port and the host key."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        port_file = self.directory / "port"
        if not self.port:
            self.port = int(port_file.read_text(encoding="ascii")) if port_file.exists() else free_port()
        port_file.write_text(str(self.port), encoding="ascii")
        make_key(self.directory / "ssh_host_ed25519_key", "lab")
        (self.directory / "authorized_keys").write_text(self.authorized_key + "\n", encoding="ascii")
        config = _CONFIG.format(port=self.port, directory=self.directory, use_pam="yes" if _root_is_locked() else "no")
        self.config.write_text(config, encoding="utf-8")

    @property
    def config(self) -> Path:
        """The sshd_config(5) that `prepare` writes."""
        return self.directory / "sshd_config"

    @property
    def argv(self) -> list[str]:
        """The command that runs it in the foreground, logging to stderr."""
        return ["/usr/sbin/sshd", "-D", "-e", "-f", str(self.config)]

    @property
    def known_hosts_line(self) -> str:
        """Its line for known_hosts(5)."""
        public = (self.directory / "ssh_host_ed25519_key.pub").read_text(encoding="ascii")
        return known_hosts_line(self.port, public)

    def target(self, name: str, private_key: Path) -> SshTarget:
        """How GBS reaches it, by one of the keys that it trusts; it has been prepared."""
        known_hosts = self.directory / "known_hosts"
        known_hosts.write_text(f"{self.known_hosts_line}\n", encoding="ascii")
        return SshTarget(name, "127.0.0.1", "root", self.port, private_key, known_hosts)

    def start(self) -> None:
        """Run it on this machine; returns when it greets. LabError when it does not within 10 s."""
        self.stop()
        self.prepare()
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with (self.directory / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        ProcessRecord.of(self._process.pid).save(self.directory / "sshd.json")
        if not wait_for_banner(self.port, 10):
            self.stop()
            raise LabError(f"sshd does not answer on 127.0.0.1:{self.port}; see {self.directory}/sshd.log")

    def stop(self) -> None:
        """End it (also one that an earlier, crashed lab started from the same directory)."""
        record = ProcessRecord.load(self.directory / "sshd.json")
        if record is not None:
            record.kill()
        (self.directory / "sshd.json").unlink(missing_ok=True)
        process = getattr(self, "_process", None)
        if process is not None:
            process.wait()
