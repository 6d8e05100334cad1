"""The lab of the demo and the tests: the key pair of a GBS server, a KVM host `kvm1` and the VM `web1` on it.

python3 -m tests.lab.lab [--name NAME] up | down | purge | status | seed | ssh kvm1|web1 [-- command]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.lab.accelerator import accelerator, cache_folder
from tests.lab.guest import Guest
from tests.lab.guest_image import instance_image, remove_cache
from tests.lab.kvm_host import KvmHost
from tests.lab.process import LabError
from tests.lab.progress import Say, phase, say
from tests.lab.sshd import free_port, known_hosts_line, make_key

_SSH_CONFIG = """\
Host *
    HostName 127.0.0.1
    User root
    IdentityFile {directory}/id_ed25519
    IdentitiesOnly yes
    UserKnownHostsFile {directory}/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    BatchMode yes
"""


class Lab:
    """A lab by name, below GBS_LAB_DIR (default /var/lib/gbs-lab); two labs of different names do not meet."""

    def __init__(self, name: str = "demo") -> None:
        self.name = name
        self.directory = Path(os.environ.get("GBS_LAB_DIR") or "/var/lib/gbs-lab") / name
        self.ssh = self.directory / "ssh"
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.public_key = self._key("id_ed25519")
        self._key("web1_host_key")
        self.kvm1 = KvmHost("kvm1", self.directory / "hosts" / "kvm1", self.public_key)
        self.web1 = Guest(self.kvm1, "web1", self._port("web1"), self.ssh)

    @property
    def private_key(self) -> Path:
        """The GBS server's ssh key."""
        return self.directory / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """known_hosts(5) with the keys of kvm1 and web1."""
        return self.directory / "known_hosts"

    @property
    def kvm1_uri(self) -> str:
        """The libvirt URI of kvm1 for a client on this machine."""
        return self.kvm1.uri(self.ssh)

    def host_up(self, tell: Say = say) -> None:
        """Bring up the key pair and kvm1 only: all that tests with tiny guests need."""
        with phase(f"lab {self.name}: KVM host kvm1", tell):
            self.kvm1.start()
        self._write_ssh()

    def up(self, tell: Say = say, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Bring up all that is not up: kvm1, and web1 with ssh, guest agent and databases answering.

        `meanwhile` is called when web1 has been started, which takes its time.
        """
        self.host_up(tell)
        if not self.web1.defined():
            image = instance_image("web1", self.public_key, self.directory / "web1_host_key", tell)
            with phase("web1: copying its disk to kvm1", tell):
                self.web1.install(image)
        if not self.web1.running():
            self.web1.start()
        meanwhile()
        self.web1.wait_until_up(tell)

    def down(self) -> None:
        """End and remove all of this lab; the cache stays."""
        self.kvm1.remove()
        shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.directory.parent.rmdir()

    def describe(self) -> str:
        """What there is and how to reach it, for a person."""
        if not self.kvm1.running():
            return f"lab {self.name}: down"
        state = self.kvm1.run(["virsh", "-q", "domstate", "web1"], check=False).stdout.strip() or "not defined"
        lines = [
            f"lab {self.name}: {self.directory} (guests run with {accelerator()})",
            f"  kvm1  root@127.0.0.1 port {self.kvm1.ssh_port}   {self.ssh} kvm1",
            f"        {self.kvm1_uri}",
            f"  web1  root@127.0.0.1 port {self.web1.ssh_port}   {self.ssh} web1   ({state})",
        ]
        return "\n".join(lines)

    def _port(self, name: str) -> int:
        """The guest's port: written down when it is first asked for, free at that time."""
        note = self.directory / f"{name}.port"
        if not note.exists():
            note.write_text(str(free_port()), encoding="ascii")
        return int(note.read_text(encoding="ascii"))

    def _key(self, name: str) -> str:
        """A key pair of the lab; its public line is returned.

        It comes from the cache, so that one image with the keys in it serves every lab of the machine.
        """
        cached = cache_folder() / "identity" / name
        make_key(cached, f"gbs-lab {name}")
        for source in (cached, cached.with_name(f"{name}.pub")):
            if not (self.directory / source.name).exists():
                shutil.copy(source, self.directory / source.name)
        return (self.directory / f"{name}.pub").read_text(encoding="ascii").strip()

    def _write_ssh(self) -> None:
        web1_key = (self.directory / "web1_host_key.pub").read_text(encoding="ascii")
        lines = [self.kvm1.known_hosts_line, known_hosts_line(self.web1.ssh_port, web1_key)]
        self.known_hosts.write_text("\n".join(lines) + "\n", encoding="ascii")
        config = f"Host kvm1\n    Port {self.kvm1.ssh_port}\nHost web1\n    Port {self.web1.ssh_port}\n"
        config += _SSH_CONFIG.format(directory=self.directory)
        (self.directory / "ssh_config").write_text(config, encoding="utf-8")
        self.ssh.write_text(f'#!/bin/sh\nexec ssh -F {self.directory}/ssh_config "$@"\n', encoding="utf-8")
        self.ssh.chmod(0o755)


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status is returned."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab.lab", description="A lab on this machine.")
    parser.add_argument("--name", default="demo", help="which lab (default: demo)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="bring up kvm1 and web1; what is up stays")
    commands.add_parser("down", help="end and remove everything but the cache")
    commands.add_parser("purge", help="down, and remove the cache of images too")
    commands.add_parser("status", help="say what runs and how to reach it")
    commands.add_parser("seed", help="put files and databases into web1")
    ssh = commands.add_parser("ssh", help="log in, or run a command")
    ssh.add_argument("where", choices=["kvm1", "web1"])
    ssh.add_argument("remote", nargs=argparse.REMAINDER, metavar="-- command")
    options = parser.parse_args(argv)
    lab = Lab(options.name)
    try:
        return _run(lab, options)
    except LabError as error:
        print(f"lab {lab.name}: {error}", file=sys.stderr)
        return 1


def _run(lab: Lab, options: argparse.Namespace) -> int:
    if options.command == "ssh":
        remote = options.remote[1:] if options.remote[:1] == ["--"] else options.remote
        return subprocess.run([str(lab.ssh), options.where, *remote], check=False).returncode
    if options.command == "up":
        lab.up()
    elif options.command in ("down", "purge"):
        lab.down()
        if options.command == "purge":
            remove_cache()
        return 0
    elif options.command == "seed":
        from tests.lab.data import seed

        seed(lab)
    say(lab.describe())
    return 0


if __name__ == "__main__":
    sys.exit(main())
