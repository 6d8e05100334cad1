"""A VM's definition as the backup data of a KVM host has it."""

from dataclasses import dataclass
from pathlib import Path

from tasks.model.domain_xml import Domain


@dataclass(frozen=True)
class Definition:
    """A VM's definition in a KVM host's overnight copy."""

    kvm_host: str
    night: str
    file: Path
    xml: str
    domain: Domain
