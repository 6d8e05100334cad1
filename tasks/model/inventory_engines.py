"""What the inventory says of engines that keep restore points: rsnapshot by default, restic, a vendor's commands."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tasks.model.inventory_fields import AbsolutePath, Section

RSNAPSHOT = "rsnapshot"
"""The engine that needs no declaration."""
Meaning = Literal["ok", "warning", "retry", "damaged", "failed"]
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_LOGIN = re.compile(r"://[^/@]+@")


def _repository(text: str) -> str:
    if "{client}" not in text:
        raise ValueError("each client has a repository of its own: put {client} where its name goes")
    if not text.isprintable() or text.startswith("-"):
        raise ValueError("not a repository of restic's")
    return text


class Restic(Section):
    """A restic repository for each client: encrypted, deduplicated, local or in whatever store restic speaks to."""

    repository: Annotated[str, AfterValidator(_repository)] | None = Field(
        None,
        description="As restic writes it, such as s3:https://s3.example.org/backup/{client}; "
        "in the client's folder of the permanent store when missing.",
    )
    password_file: AbsolutePath = Field(description="A file of the GBS server that only root can read.")
    environment_file: AbsolutePath | None = Field(
        None, description="NAME=value lines, such as AWS_ACCESS_KEY_ID; only root can read it."
    )


def login_in(repository: str) -> bool:
    """Whether a repository's address has a login in it."""
    return _LOGIN.search(repository) is not None


class Vendor(Section):
    """A backup application's own commands, each a list of words; no shell reads them."""

    backup: tuple[str, ...] = Field(description="Backs up the folder {source} of {client} under the name {night}.")
    list: tuple[str, ...] = Field(description="Prints what there is of {client}: every night's name stands in it.")
    restore: tuple[str, ...] = Field(description="Brings the folder of {night} back as {target}, which is made.")
    verify: tuple[str, ...] = Field((), description="Proves {night}; without it a night is restored and read.")
    forget: tuple[str, ...] = Field(
        (), description="Removes {night}: GBS's policy decides. Without it what is kept is the vendor's affair."
    )
    exit_codes: dict[int, Meaning] = Field(
        {0: "ok"},
        description="What each exit status means; damaged says that a night is not what it was. "
        "One that is not here is a failure.",
    )
    environment_file: AbsolutePath | None = Field(None, description="NAME=value lines; only root can read it.")

    def meaning(self, status: int) -> Meaning:
        """What an exit status means."""
        return self.exit_codes.get(status, "failed")

    @model_validator(mode="after")
    def _words(self) -> Self:
        for field, needed, known in _PLACES:
            argv: tuple[str, ...] = getattr(self, field)
            if not argv and field not in ("verify", "forget"):
                raise ValueError(f"{field} is empty")
            used = set(_placeholders(argv))
            if argv and (missing := needed - used):
                raise ValueError(f"{field} lacks {{{min(missing)}}}")
            if unknown := used - known:
                raise ValueError(f"{field}: {{{min(unknown)}}} is not one of {', '.join(sorted(known))}")
        if "ok" not in self.exit_codes.values() or not all(0 <= code <= 255 for code in self.exit_codes):
            raise ValueError("exit_codes are 0 to 255, and one of them is ok")
        return self


_PLACES = (
    ("backup", {"source", "night"}, {"client", "source", "night"}),
    ("list", set[str](), {"client"}),
    ("restore", {"night", "target"}, {"client", "night", "target"}),
    ("verify", {"night"}, {"client", "night", "percent"}),
    ("forget", {"night"}, {"client", "night"}),
)
"""Of each command: the placeholders that it must have, and those that it may."""


def _placeholders(argv: tuple[str, ...]) -> Iterator[str]:
    for word in argv:
        yield from _PLACEHOLDER.findall(word)


def filled(argv: tuple[str, ...], **values: str) -> list[str]:
    """The words with their placeholders filled; a value with braces in it is not read again."""
    return [_PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), word) for word in argv]


class Engine(Section):
    """An engine that keeps restore points: either restic or a vendor's commands."""

    restic: Restic | None = None
    command: Vendor | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.restic is None) == (self.command is None):
            raise ValueError("an engine is either restic or command")
        return self
