"""Who we are to a system over ssh."""

from pathlib import Path
from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field

from tasks.model.names import slug
from tasks.model.ssh_target import SshTarget


class SshIdentity(Block):
    """An ssh user, the file of its private key and the file of the host keys that we trust.

    Load it with `SshIdentity.load("identity-default")`; `gbs apply` makes it from the inventory.
    """

    _block_type_name: ClassVar[str] = "GBS SSH identity"
    _block_type_slug: ClassVar[str] = "gbs-ssh-identity"
    _description: ClassVar[str] = "Who GBS is to a system over ssh: user, key file, trusted host keys."

    user: str = Field("root", description="The user that logs in; root reads every file and keeps its owner.")
    private_key_file: Path = Field(description="The private key's file on the GBS server, mode 0600.")
    known_hosts_file: Path = Field(description="The host keys that are trusted; any other key is refused.")

    @staticmethod
    def document_name(identity: str) -> str:
        """The name of the block for an identity of the inventory."""
        return f"identity-{slug(identity)}".replace(".", "-")

    def target(self, name: str, address: str, port: int) -> SshTarget:
        """The system `name` at `address`, reached with this identity."""
        return SshTarget(name, address, self.user, port, self.private_key_file, self.known_hosts_file)
