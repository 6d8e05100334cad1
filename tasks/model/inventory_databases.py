"""What the inventory says of the databases of a client."""

from typing import Self

from pydantic import Field, model_validator

from tasks.model.databases import DumpCommand, DumpedBy, Server
from tasks.model.inventory_fields import AbsolutePath, FileName, Name, Section


class Database(Section):
    """Databases of one engine on a client, the named ones or all; or a command that dumps what we know no engine of."""

    engine: DumpedBy
    names: tuple[Name, ...] = Field(
        (), description="Databases to dump, all when empty; the files of sqlite; the one name that command goes by."
    )
    login: AbsolutePath | None = Field(
        None, description="A file on the client that logs us in, in the engine's format; else its superuser's socket."
    )
    prove: bool = Field(False, description="Restore each dump into a throw-away server here, every night.")
    command: tuple[str, ...] = Field((), description="Makes the dumps of engine command, in the folder it runs in.")
    produces: tuple[FileName, ...] = Field((), description="The files that command must make.")
    check: tuple[str, ...] = Field((), description="Must succeed for each file of command, which is its last word.")
    restore: tuple[str, ...] = Field((), description="Brings the files of command back, in their folder.")

    @model_validator(mode="after")
    def _fits_engine(self) -> Self:
        if self.engine == "command":
            if len(self.names) != 1 or not self.command or not self.produces:
                raise ValueError("engine command needs names (one), command and produces")
            if self.login or self.prove:
                raise ValueError("engine command has no login and no prove: its check proves")
        elif self.command or self.produces or self.check or self.restore:
            raise ValueError(f"command, produces, check and restore are of engine command, not of {self.engine}")
        if self.prove and self.engine == "openldap":
            raise ValueError("prove is not for openldap: its dump is read back against the schema when it is made")
        if self.engine == "sqlite" and not (self.names and all(name.startswith("/") for name in self.names)):
            raise ValueError("engine sqlite needs names: the absolute paths of its files")
        return self

    @property
    def called(self) -> str:
        """What tells it from the others of its client."""
        return f"command {self.names[0]}" if self.engine == "command" else self.engine

    @property
    def server(self) -> Server:
        """The server that is spoken to; ValueError for a command."""
        if self.engine == "command":
            raise ValueError("a command is no server")
        return Server(self.engine, self.login or "")

    @property
    def dump_command(self) -> DumpCommand:
        """The command that makes the dumps."""
        return DumpCommand(self.names[0], self.command, self.produces, self.check, self.restore)
