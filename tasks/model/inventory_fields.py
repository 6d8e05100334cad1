"""Values of the inventory: names, addresses, paths; and what all of its sections are."""

import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_ADDRESS = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")


def _address(text: str) -> str:
    if not _ADDRESS.fullmatch(text):
        raise ValueError("not a host name or IP address")
    return text


def _absolute(path: str) -> str:
    if not path.startswith("/") or ".." in PurePosixPath(path).parts or not path.isprintable():
        raise ValueError("must be an absolute, printable path without '..'")
    # Doubled slashes and dots go: for rsync --relative, /./ would cut off what is before it.
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _user(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", text):
        raise ValueError("not a user name")
    return text


def _name(text: str) -> str:
    if not text or len(text) > 200 or not text.isprintable() or text != text.strip():
        raise ValueError("a name is 1 to 200 printable characters without outer spaces")
    return text


Address = Annotated[str, AfterValidator(_address)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
User = Annotated[str, AfterValidator(_user)]
Name = Annotated[str, AfterValidator(_name)]
Port = Annotated[int, Field(ge=1, le=65535)]


def _file_name(text: str) -> str:
    if not text or "/" in text or text in (".", "..") or not text.isprintable():
        raise ValueError("must be the name of a file, without a folder")
    return text


FileName = Annotated[str, AfterValidator(_file_name)]


class Section(BaseModel):
    """A section of the inventory: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
