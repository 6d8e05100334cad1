"""A KVM host in namespaces of its own: private libvirt, private sshd, the network shared with the machine."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.lab.namespaced import Namespaced

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


def program(name: str) -> list[str]:
    """The words that run on the machine itself a program of the hosts' release."""
    tree = _tree()
    if not tree:
        return [name]
    loader = [f"{tree}/lib64/ld-linux-x86-64.so.2", "--library-path", f"{tree}/usr/lib/x86_64-linux-gnu"]
    return [*loader, f"{tree}/usr/bin/{name}"]


@dataclasses.dataclass
class KvmHost(Namespaced):
    """A KVM host: private libvirt, private sshd."""

    @property
    def init(self) -> Sequence[str]:
        """Process 1."""
        return [str(_INIT), self.name, str(self.directory), _tree()]

    @property
    def images(self) -> Path:
        """Where the machine sees the host's /var/lib/libvirt/images."""
        return self.directory / "root/var/lib/libvirt/images"

    def uri(self, ssh_command: Path) -> str:
        """The libvirt URI for a client on the machine; `ssh_command` is an ssh that knows key and known_hosts."""
        return f"qemu+ssh://root@127.0.0.1:{self.ssh_port}/system?command={ssh_command}&no_tty=1"

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
                # Its first thread may be a zombie while others still hold the lock of the pid file.
                case "$(cut -d' ' -f3 /proc/$pid/stat 2>/dev/null)" in
                    '') exit 0;;
                    Z) [ "$(ls /proc/$pid/task 2>/dev/null | wc -l)" -gt 1 ] || exit 0;;
                esac
                sleep 0.1
            done; exit 1
        """
        self.run(["sh", "-c", script, "sh", signal_name])

    def prepare(self) -> None:
        """Make its files where missing; what is there (domains, images, port, keys) stays."""
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
