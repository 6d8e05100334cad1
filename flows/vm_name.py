"""The VM and client parameters of flows: in the run form, a list from the inventory as it was when it was deployed."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema

from tasks import places
from tasks.errors import GbsError


@dataclass(frozen=True)
class OneOf:
    """Gives a text parameter the inventory's names as its choices; without an inventory it is any text."""

    kind: Literal["vm", "client", "kvm_host"]

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
        if self.kind == "vm":
            return list(declared.vms)
        return list(declared.systems if self.kind == "client" else declared.kvm_hosts)


VmName = Annotated[str, OneOf("vm")]
ClientName = Annotated[str, OneOf("client")]
KvmHostName = Annotated[str, OneOf("kvm_host")]
