"""A KVM host: where its libvirt is reached."""

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field

from tasks.model.names import slug


class KvmHost(Block):
    """A KVM host's address, its libvirt and where its images lie.

    Load it with `KvmHost.load("kvm-host-NAME")`; `gbs apply` makes it from the inventory.
    """

    _block_type_name: ClassVar[str] = "GBS KVM host"
    _block_type_slug: ClassVar[str] = "gbs-kvm-host"
    _description: ClassVar[str] = "Where a KVM host and its libvirt are reached, and where its images lie."

    name: str = Field(description="What operators call the host.")
    address: str = Field(description="Host name or IP address.")
    port: int = Field(22, description="The port of its sshd.")
    identity: str = Field(description="Name of the SSH identity block that logs in.")
    libvirt_uri: str = Field("qemu:///system", description="libvirt's URI as it is on the host itself.")
    image_folder: str = Field("/var/lib/libvirt/images", description="Where recovered disks are put.")

    @staticmethod
    def document_name(host: str) -> str:
        """The name of the block for a KVM host of the inventory."""
        return f"kvm-host-{slug(host)}".replace(".", "-")
