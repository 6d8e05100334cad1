"""The definition of the one snapshot that we take: every disk named, so that no default of libvirt decides."""

import xml.etree.ElementTree as ET
from collections.abc import Iterable

from tasks.model.window import WindowPlan


def render_snapshot(plan: WindowPlan, left_out: Iterable[str]) -> str:
    """A <domainsnapshot> that puts each planned disk on its overlay and leaves the targets in `left_out` alone.

    https://libvirt.org/formatsnapshot.html; a disk that is not named would get a default that fails when it is shared.
    """
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "name").text = f"gbs-{plan.run}"
    disks = ET.SubElement(root, "disks")
    for planned in plan.disks:
        disk = ET.SubElement(disks, "disk", name=planned.target, snapshot="external", type="file")
        ET.SubElement(disk, "driver", type="qcow2")
        ET.SubElement(disk, "source", file=planned.overlay)
    for target in left_out:
        ET.SubElement(disks, "disk", name=target, snapshot="no")
    return ET.tostring(root, encoding="unicode")
