"""The definition of a VM whose disks are overlays on exports of the store, and what one shows of their chains."""

import xml.etree.ElementTree as ET

from tasks.model.domain_xml import read_tree, write_tree
from tasks.model.instant import InstantVm


def on_the_store(record: InstantVm) -> str:
    """The record's definition with each disk's chain down to its export, and errors that pause the VM.

    The chain is stated, so libvirt probes nothing. An export that is gone must not become an I/O error of the guest,
    which would make its file systems read-only: QEMU pauses, and repeats what failed when it is resumed.
    """
    root = read_tree(record.xml)
    overlays = {disk.target: record.socket(disk.target) for disk in record.disks}
    for disk in root.findall("devices/disk"):
        driver, socket = disk.find("driver"), overlays.get(_target(disk))
        if driver is None or socket is None:
            continue
        driver.attrib.update({"error_policy": "stop", "rerror_policy": "stop"})
        for old in disk.findall("backingStore"):
            disk.remove(old)
        backing = ET.Element("backingStore", {"type": "network"})
        ET.SubElement(backing, "format", {"type": "raw"})
        source = ET.SubElement(backing, "source", {"protocol": "nbd"})
        ET.SubElement(source, "host", {"transport": "unix", "socket": socket})
        ET.SubElement(backing, "backingStore")
        disk.insert(list(disk).index(driver) + 2, backing)
    return write_tree(root)


def off_the_store(text: str, record: InstantVm) -> str:
    """A definition of a VM whose disks have moved: without their exports, with the policies of the record's."""
    root = read_tree(text)
    before = {_target(disk): disk.find("driver") for disk in read_tree(record.xml).findall("devices/disk")}
    for disk in root.findall("devices/disk"):
        driver, was = disk.find("driver"), before.get(_target(disk))
        if driver is None or was is None:
            continue
        for policy in ("error_policy", "rerror_policy"):
            driver.attrib.pop(policy, None)
            if (value := was.get(policy)) is not None:
                driver.set(policy, value)
        for backing in disk.findall("backingStore"):
            disk.remove(backing)
    return write_tree(root)


def still_on_the_store(text: str, record: InstantVm) -> tuple[str, ...]:
    """The targets of the record's disks whose chain in this definition has an export of ours."""
    sockets = {record.socket(disk.target) for disk in record.disks}
    return tuple(
        _target(disk)
        for disk in read_tree(text).findall("devices/disk")
        if any(host.get("socket") in sockets for host in disk.iterfind(".//backingStore/source/host"))
    )


def baselabel(capabilities: str) -> str:
    """The owner (uid:gid) that the host's libvirt runs QEMU as, from its capabilities; root's without one."""
    for model in ET.fromstring(capabilities).iterfind("host/secmodel"):  # noqa: S314 - libvirt's own answer
        if model.findtext("model") == "dac":
            return (model.findtext("baselabel") or "0:0").replace("+", "")
    return "0:0"


def _target(disk: ET.Element) -> str:
    target = disk.find("target")
    return target.get("dev", "") if target is not None else ""
