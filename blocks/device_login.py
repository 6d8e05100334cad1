"""Who we are to network and SAN devices."""

from pathlib import Path
from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field

from tasks.model.device import DeviceTarget
from tasks.model.names import slug


class DeviceLogin(Block):
    """A user of devices and the files of its secrets and of the host keys that we trust.

    Load it with `DeviceLogin.load("login-NAME")`; `gbs apply` makes it from the inventory.
    """

    _block_type_name: ClassVar[str] = "GBS device login"
    _block_type_slug: ClassVar[str] = "gbs-device-login"
    _description: ClassVar[str] = "Who GBS is to devices: a user, the files of its secrets, trusted host keys."

    user: str = Field(description="The user that logs in; one that can only show is enough.")
    known_hosts_file: Path = Field(description="The host keys that are trusted; any other key is refused.")
    password_file: Path | None = Field(None, description="The file of its password on the GBS server, mode 0600.")
    private_key_file: Path | None = Field(None, description="The file of its private key, instead of a password.")
    enable_file: Path | None = Field(None, description="The file of what `enable` asks for, mode 0600.")

    @staticmethod
    def document_name(login: str) -> str:
        """The name of the block for a login of the inventory."""
        return f"login-{slug(login)}".replace(".", "-")

    def target(self, name: str, address: str, port: int) -> DeviceTarget:
        """The device `name` at `address`, reached with this login."""
        return DeviceTarget(
            name,
            address,
            port,
            self.user,
            self.known_hosts_file,
            self.password_file,
            self.private_key_file,
            self.enable_file,
        )
