"""A Debian guest on a KVM host of the lab: its plain libvirt definition, its start, and a way to log in to it."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab.accelerator import accelerator
from tests.lab.guest_image import copy_image
from tests.lab.kvm_host import KvmHost
from tests.lab.process import LabError
from tests.lab.progress import Say, phase, say
from tests.lab.sshd import wait_for_banner

# Emulated, a boot takes about a minute on a quiet machine; with four busy emulators beside it, six were seen.
BOOT_DEADLINE_S = 900.0


@dataclasses.dataclass
class Guest:
    """A guest `name` with one disk; `ssh` is the lab's ssh command, which knows `name`, its key and its port."""

    host: KvmHost
    name: str
    ssh_port: int
    ssh: Path
    memory_mib: int = 1024

    @property
    def mac(self) -> str:
        """The address of its network card; the same for the same name."""
        digest = hashlib.sha256(self.name.encode()).hexdigest()
        return f"52:54:00:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"

    @property
    def disk(self) -> str:
        """The host's path of its disk image as installed."""
        return f"/var/lib/libvirt/images/{self.name}.qcow2"

    @property
    def console(self) -> Path:
        """Where the machine sees the log of its serial console."""
        return self.host.directory / f"root/var/log/libvirt/qemu/{self.name}-console.log"

    def defined(self) -> bool:
        """Whether the host knows a domain of its name."""
        return self.name in self.host.virsh("list", "--all", "--name").split()

    def running(self) -> bool:
        """Whether that domain runs."""
        return self.name in self.host.virsh("list", "--name").split()

    def install(self, image: Path) -> None:
        """Copy the image to the host, define the guest and make its port reach it."""
        copy_image(image, self.host.images / f"{self.name}.qcow2")
        self.host.forward(self.mac, self.ssh_port)
        self.host.virsh("define", "/dev/stdin", input_text=self.domain_xml())

    def start(self) -> None:
        """Start it; returns when QEMU runs."""
        self.host.virsh("start", self.name)

    def destroy(self) -> None:
        """Lose it: end it, undefine it and remove the image that it was installed with."""
        self.host.run(["virsh", "-q", "destroy", self.name], check=False)
        self.host.virsh("undefine", self.name, "--checkpoints-metadata", "--snapshots-metadata", "--nvram")
        (self.host.images / f"{self.name}.qcow2").unlink(missing_ok=True)

    def run(
        self, command: str, *, check: bool = True, stdin: bytes | None = None, timeout_s: float = 300
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a shell command in the guest over ssh; LabError with its stderr when it fails and `check` is set."""
        argv = [str(self.ssh), "-o", "ConnectTimeout=10", self.name, command]
        done = subprocess.run(argv, input=stdin or b"", capture_output=True, timeout=timeout_s, check=False)
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: exit {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
        return done

    def agent_answers(self) -> bool:
        """Whether the guest agent answers a ping."""
        return agent_answers(self.host, self.name)

    def ssh_answers(self) -> bool:
        """Whether a login works."""
        # The forwarding port takes connections long before the guest does: ask for the greeting before a login hangs.
        return wait_for_banner(self.ssh_port, 2) and self.run("true", check=False, timeout_s=60).returncode == 0

    def databases_answer(self) -> bool:
        """Whether PostgreSQL and MariaDB take queries."""
        return self.run("pg_isready -q && mariadb-admin --silent ping", check=False).returncode == 0

    def wait_until_up(self, tell: Say = say, deadline_s: float = BOOT_DEADLINE_S) -> None:
        """Wait until ssh, the guest agent and both databases answer."""
        self._wait("ssh", self.ssh_answers, tell, deadline_s)
        self._wait("guest agent", self.agent_answers, tell, deadline_s)
        self._wait("databases", self.databases_answer, tell, deadline_s)

    def _wait(self, what: str, answers: Callable[[], bool], tell: Say, deadline_s: float) -> None:
        end = time.monotonic() + deadline_s
        with phase(f"{self.name}: waiting for {what}", tell):
            while not answers():
                if time.monotonic() > end:
                    raise LabError(f"{self.name}: no answer of {what} in {deadline_s:.0f} s; see {self.console}")
                time.sleep(0.5)

    def domain_xml(self) -> str:
        """Its libvirt definition; nothing in it is special to the lab."""
        disk = disk_xml("vda", "qcow2", self.disk)
        card = f"<interface type='user'><mac address='{self.mac}'/><model type='virtio'/></interface>"
        return domain_xml(self.name, self.memory_mib, "<os>", disk + card)


def agent_answers(host: KvmHost, name: str) -> bool:
    """Whether the agent of a guest answers a ping."""
    argv = ["virsh", "-q", "qemu-agent-command", "--timeout", "5", name, '{"execute":"guest-ping"}']
    return host.run(argv, check=False).returncode == 0


def disk_xml(target: str, disk_format: str, path: str) -> str:
    """The definition of a disk that is a file of the host."""
    return f"""<disk type='file' device='disk'>
      <driver name='qemu' type='{disk_format}' discard='unmap'/>
      <source file='{path}'/>
      <target dev='{target}' bus='virtio'/>
    </disk>
    """


def domain_xml(name: str, memory_mib: int, firmware: str, devices: str) -> str:
    """The definition of a Debian guest: `firmware` is its <os> tag and what follows it, `devices` are its own.

    It has one processor: emulated, a second one costs more than it gives, as each wake-up of the other is an exit.
    """
    return f"""<domain type='{"kvm" if accelerator() == "kvm" else "qemu"}'>
  <name>{name}</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  {firmware}
    <type arch='x86_64' machine='q35'>hvm</type>
    <boot dev='hd'/>
  </os>
  <features><acpi/><apic/></features>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {devices}
    <controller type='usb' model='none'/>
    <serial type='pty'>
      <log file='/var/log/libvirt/qemu/{name}-console.log' append='on'/>
      <target port='0'/>
    </serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <video><model type='vga'/></video>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>
"""
