"""An ssh server that answers as a device does at its prompt: echo, paging, privileges. A stand-in, not a device."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from tests.lab.sshd import known_hosts_line

PAGE = 24


@dataclass
class Dialect:
    """What a kind of device says. `commands` are what it answers to; those that end paging and privileges are apart."""

    prompt: str
    commands: dict[str, str]
    no_paging: str
    more: str
    settings: dict[str, str] = field(default_factory=dict)
    """What it says to commands that concern the terminal alone."""
    privileged_prompt: str = ""
    enable_secret: str = ""
    refusal: str = "% Invalid input detected at '^' marker."
    banner: str = "\r\nUnauthorised access is forbidden\r\n\r\n"


IOS = Dialect("sw1>", {}, "terminal length 0", " --More-- ", {"terminal width 511": ""}, "sw1#", "let-me-see")
JUNOS = Dialect(
    "admin@fw1> ",
    {},
    "set cli screen-length 0",
    "---(more)---",
    {
        "set cli screen-width 511": "Screen width set to 511",
        "set cli complete-on-space off": "Disabling complete-on-space",
        "set cli screen-length 0": "Screen length set to 0",
    },
    refusal="syntax error, expecting <command>.",
)


class _Server(paramiko.ServerInterface):
    def __init__(self, user: str, password: str, logins: list[str]) -> None:
        self._login, self._logins = (user, password), logins
        self.shell = threading.Event()

    def check_auth_password(self, username: str, password: str) -> int:
        self._logins.append(username)
        return AUTH_SUCCESSFUL if (username, password) == self._login else AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "password"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_pty_request(self, *_: object) -> bool:
        return True

    def check_channel_shell_request(self, channel: paramiko.Channel) -> bool:
        self.shell.set()
        return True


@dataclass
class ScriptedDevice:
    """A device on a loopback port; `dialect` may be changed while it runs.

    `logins` are the users who sent a password, `asked` the lines that came.
    """

    dialect: Dialect
    user: str = "backup"
    password: str = "b4ckup-pass"
    logins: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Listen; a thread a connection."""
        self._key = paramiko.ECDSAKey.generate()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def trust(self, known_hosts: Path) -> None:
        """Write its host key where it is trusted."""
        known_hosts.write_text(known_hosts_line(self.port, f"{self._key.get_name()} {self._key.get_base64()}") + "\n")

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        transport = paramiko.Transport(connection)
        transport.add_server_key(self._key)
        server = _Server(self.user, self.password, self.logins)
        try:
            transport.start_server(server=server)
            channel = transport.accept(20)
            if channel is not None and server.shell.wait(10):
                _Session(self, channel).run()
        except (paramiko.SSHException, EOFError, OSError):
            pass
        finally:
            transport.close()


class _Session:
    def __init__(self, device: ScriptedDevice, channel: paramiko.Channel) -> None:
        self.device, self.channel, self.dialect = device, channel, device.dialect
        self.prompt, self.paged = self.dialect.prompt, True

    def run(self) -> None:
        self._say(self.dialect.banner + self.prompt)
        while (line := self._line(echo=True)) is not None:
            self.device.asked.append(line)
            if line in ("exit", "quit"):
                return
            self._answer(line)
            self._say(self.prompt)

    def _answer(self, line: str) -> None:
        dialect = self.dialect
        if line == "enable" and dialect.enable_secret:
            self._say("Password: ")
            if self._line(echo=False) == dialect.enable_secret:
                self.prompt = dialect.privileged_prompt
            else:
                self._say("\r\n% Access denied\r\n")
        elif line in dialect.settings or line == dialect.no_paging:
            self.paged = self.paged and line != dialect.no_paging
            self._page(dialect.settings.get(line, ""))
        elif line:
            allowed = self.prompt != dialect.prompt or not dialect.enable_secret
            self._page(dialect.commands.get(line, dialect.refusal) if allowed else dialect.refusal)

    def _page(self, text: str) -> None:
        for number, line in enumerate(text.splitlines(), start=1):
            self._say(f"{line}\r\n")
            if self.paged and number % PAGE == 0:
                self._say(self.dialect.more)
                self.channel.recv(1)

    def _line(self, *, echo: bool) -> str | None:
        line = b""
        while char := self.channel.recv(1):
            if char in (b"\r", b"\n"):
                self._say("\r\n")
                return line.decode().strip()
            line += char
            if echo:
                self.channel.sendall(char)
        return None

    def _say(self, text: str) -> None:
        self.channel.sendall(text.encode())
