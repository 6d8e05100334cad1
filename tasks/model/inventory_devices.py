"""What the inventory says of network and SAN devices."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from tasks.model.device import DeviceType
from tasks.model.inventory_fields import Address, Name, Port, Section, User


class Login(Section):
    """Who we are to devices. Secrets are files of the GBS server that only root can read."""

    user: User
    known_hosts_file: Path
    password_file: Path | None = None
    private_key_file: Path | None = None
    enable_file: Path | None = Field(None, description="What `enable` asks for, where a device does.")

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.password_file is None) == (self.private_key_file is None):
            raise ValueError("a login has either password_file or private_key_file")
        return self


class Device(Section):
    """A network or SAN device whose configuration is kept."""

    address: Address
    type: DeviceType
    port: Port = 22
    login: Name = "default"
    max_age_days: int = Field(2, ge=1, description="Not seen for longer, it is an alert.")
