"""The stores: where the copies of tonight and the history lie."""

from pathlib import Path
from typing import ClassVar, Literal

from prefect.blocks.core import Block
from pydantic import Field


class Store(Block):
    """The GBS server's own store: overnight copies, images, journals, reports.

    Load it with `Store.load("store")`; `gbs apply` makes it from the inventory.
    """

    _block_type_name: ClassVar[str] = "GBS store"
    _block_type_slug: ClassVar[str] = "gbs-store"
    _description: ClassVar[str] = "Where overnight copies, images and journals lie on the GBS server."

    DOCUMENT: ClassVar[str] = "store"

    path: Path = Field(description="The store's folder; a file system of its own, with reflink if there is one.")
    reserve_bytes: int = Field(2 << 30, description="Free space that no run may use, in bytes.")
    fake_super: bool = Field(False, description="The store cannot have owners, devices and xattrs itself.")


class PermanentStore(Block):
    """The permanent store: a remote site's NFSv4 export or a local folder, with a marker that proves it.

    Load it with `PermanentStore.load("permanent")`; `gbs apply` makes it from the inventory.
    """

    _block_type_name: ClassVar[str] = "GBS permanent store"
    _block_type_slug: ClassVar[str] = "gbs-permanent-store"
    _description: ClassVar[str] = "Where restore points lie: NFSv4 export, mount point and the marker that proves it."

    DOCUMENT: ClassVar[str] = "permanent"

    path: Path = Field(description="The mount point, or the folder.")
    store_id: str = Field(description="What the marker file .gbs-store must say; nothing is written otherwise.")
    kind: Literal["nfs4", "local"] = Field("nfs4", description="An NFSv4 mount, or a local folder.")
    export: str | None = Field(None, description="server:/path that must be mounted there, for nfs4.")
    mount_options: str | None = Field(None, description="GBS mounts the export with these; without, it only checks.")
