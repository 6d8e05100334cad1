"""Names as parameters of flows: in the run form, a list from the inventory as it was when it was deployed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema

from tasks import places
from tasks.errors import GbsError


@dataclass(frozen=True)
class OneOf:
    """Gives a text parameter the inventory's names as its choices; without an inventory it is any text."""

    kind: Literal["vm", "client", "kvm_host", "device"]

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema of the text with an `enum`, made anew each time a deployment is."""
        schema: dict[str, Any] = handler(core)
        if names := self._names():
            schema["enum"] = names
        return schema

    def _names(self) -> list[str]:
        try:
            declared = places.inventory()
        except GbsError:
            return []
        names: dict[str, Iterable[str]] = {
            "vm": declared.vms,
            "client": declared.systems,
            "kvm_host": declared.kvm_hosts,
            "device": declared.devices,
        }
        return list(names[self.kind])


VmName = Annotated[str, OneOf("vm")]
ClientName = Annotated[str, OneOf("client")]
DeviceName = Annotated[str, OneOf("device")]
KvmHostName = Annotated[str, OneOf("kvm_host")]
