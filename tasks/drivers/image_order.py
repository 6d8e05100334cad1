"""An image that is to be taken: what every method is told."""

from dataclasses import dataclass
from pathlib import Path

from tasks.drivers.backup_survey import Parent
from tasks.drivers.host_shell import HostShell
from tasks.drivers.journal import Journal
from tasks.drivers.libvirt_host import Host
from tasks.model.image_method import Wishes
from tasks.model.ssh_target import SshTarget


@dataclass(frozen=True)
class Order:
    """An image of the VM `uuid`, whose lock is held, to be laid into the existing `folder`.

    `host`, `shell` and `target` are three ways to one KVM host: libvirt, commands, bulk data.
    """

    host: Host
    shell: HostShell
    target: SshTarget
    journal: Journal
    uuid: str
    image_id: str
    folder: Path
    wishes: Wishes
    reason: str = ""
    """Why by this method."""
    parent: Parent | None = None
    """The last published image, for methods that take increments."""
