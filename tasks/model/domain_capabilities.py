"""What a KVM host can give a VM, and what it lacks for one. https://libvirt.org/formatdomaincaps.html"""

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from tasks.model.assessment import Finding
from tasks.model.domain_xml import Domain, read_tree

HOST_MODEL = "host-model"


@dataclass(frozen=True)
class Capabilities:
    """What a host's emulator has for one machine type and way to run."""

    emulator: str
    machine: str
    efi: bool
    cpu_modes: frozenset[str]
    cpu_models: frozenset[str]
    """The usable ones."""
    tpm: bool


@dataclass(frozen=True)
class Fit:
    """What of a VM's definition stands for what the host does not have; None where it has it."""

    machine: str | None = None
    cpu_mode: str | None = None


def parse_capabilities(text: str) -> Capabilities:
    """What `virConnectGetDomainCapabilities` answered; ConfigError when it cannot be read."""
    root = read_tree(text, root_tag="domainCapabilities")
    return Capabilities(
        emulator=root.findtext("path") or "",
        machine=root.findtext("machine") or "",
        efi="efi" in _values(root.find("os/enum[@name='firmware']")),
        cpu_modes=frozenset(mode.get("name", "") for mode in root.findall("cpu/mode[@supported='yes']")),
        cpu_models=frozenset(
            model.text or "" for model in root.findall("cpu/mode[@name='custom']/model") if model.get("usable") != "no"
        ),
        tpm=root.find("devices/tpm[@supported='yes']") is not None
        and "emulator" in _values(root.find("devices/tpm/enum[@name='backendModel']")),
    )


def _values(enum: ET.Element | None) -> set[str]:
    return {value.text or "" for value in enum.findall("value")} if enum is not None else set()


def machine_family(machine: str) -> str | None:
    """The machine type that every QEMU has in place of a versioned or a vendor's one (pc-q35-rhel9.2.0: q35)."""
    for family, sign in (("q35", "q35"), ("pc", "i440fx"), ("virt", "virt")):
        if sign in machine:
            return family
    return "pc" if machine.startswith("pc-") else None


def fit(domain: Domain, found: Capabilities, *, machine: str | None, tpm: bool) -> tuple[Fit, list[Finding]]:
    """What stands for what the host lacks, and what is to be said of it; `machine` is what stands for its own.

    UEFI cannot be replaced; a CPU model can, by the host's own.
    """
    said = []
    if machine is not None:
        reason = f"{domain.machine} is unknown to the host's QEMU, {found.machine} stands for it"
        said.append(Finding(verdict="note", subject="machine type", reason=reason))
    if domain.firmware == "efi" and not found.efi:
        fix = "install OVMF there, or choose another KVM host with --to"
        said.append(Finding(verdict="refused", subject="firmware", reason="the host has no UEFI for it", fix=fix))
    if tpm and not found.tpm:
        fix = "install swtpm there, or choose another KVM host with --to"
        said.append(Finding(verdict="refused", subject="TPM", reason="the host cannot emulate one", fix=fix))
    mode, model = domain.cpu_mode or ("custom" if domain.cpu_model else ""), domain.cpu_model
    lacks = (mode and mode not in found.cpu_modes) or (mode == "custom" and model and model not in found.cpu_models)
    if not lacks or (domain.type == "qemu" and mode != "custom"):
        return Fit(machine), said
    instead = HOST_MODEL if HOST_MODEL in found.cpu_modes else "maximum"
    reason = f"{model or mode} cannot be had on the host, {instead} stands for it"
    said.append(Finding(verdict="note", subject="CPU model", reason=reason))
    return Fit(machine, instead), said
