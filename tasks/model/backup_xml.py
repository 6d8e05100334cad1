"""What libvirt is asked for a pull backup: https://libvirt.org/formatbackup.html, formatcheckpoint.html."""

import xml.etree.ElementTree as ET
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BackupDisk:
    """A disk to pull: its scratch file on the host, and the checkpoint its changes begin at (None: all of it)."""

    target: str
    scratch: str
    since: str | None


def render_backup(socket: str, disks: Sequence[BackupDisk], left_out: Collection[str]) -> str:
    """A `<domainbackup>` that serves the disks on a unix socket; every other disk is named as left out."""
    root = ET.Element("domainbackup", {"mode": "pull"})
    ET.SubElement(root, "server", {"transport": "unix", "socket": socket})
    listed = ET.SubElement(root, "disks")
    for disk in disks:
        wanted = {"name": disk.target, "backup": "yes", "type": "file", "exportname": disk.target}
        if disk.since is None:
            wanted["backupmode"] = "full"
        else:
            wanted |= {"backupmode": "incremental", "incremental": disk.since, "exportbitmap": bitmap_of(disk.target)}
        element = ET.SubElement(listed, "disk", wanted)
        ET.SubElement(element, "driver", {"type": "qcow2"})
        ET.SubElement(element, "scratch", {"file": disk.scratch})
    for target in left_out:
        ET.SubElement(listed, "disk", {"name": target, "backup": "no"})
    return ET.tostring(root, encoding="unicode")


def bitmap_of(target: str) -> str:
    """The name under which the changes of a disk are exported."""
    return f"backup-{target}"


def render_checkpoint(name: str, targets: Collection[str], left_out: Collection[str]) -> str:
    """A `<domaincheckpoint>` with a bitmap on each of `targets`."""
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    disks = ET.SubElement(root, "disks")
    for target in targets:
        ET.SubElement(disks, "disk", {"name": target, "checkpoint": "bitmap"})
    for target in left_out:
        ET.SubElement(disks, "disk", {"name": target, "checkpoint": "no"})
    return ET.tostring(root, encoding="unicode")
