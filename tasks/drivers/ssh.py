"""Commands on a system over ssh (Fabric), with our known hosts and no others.

Fabric accepts unknown host keys by itself; here an unknown or changed key is refused before anything is sent.
"""

import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import fabric
import invoke.exceptions
import paramiko

from tasks.errors import AccessDenied, CommandFailed, CommandTimedOut, ConfigError, Unreachable
from tasks.model.ssh_target import SshTarget

CONNECT_DEADLINE_S = 20
GRACE_S = 10
"""How long a command that is ended at its deadline may take to end, before it is killed."""
STALL_S = 120
_NO_STATUS = -1
_TIMEOUT_STATUS = (124, 137)


@dataclass(frozen=True)
class Output:
    """What a remote command that ended left; text that is not UTF-8 keeps its bytes as surrogates."""

    status: int
    stdout: str
    stderr: str


class Shell:
    """An open ssh connection to one system."""

    def __init__(self, target: SshTarget, connection: fabric.Connection) -> None:
        self.target = target
        self._connection = connection

    @property
    def name(self) -> str:
        """What operators call the system."""
        return self.target.name

    @property
    def alive(self) -> bool:
        """Whether the connection has not ended."""
        transport = self._connection.client.get_transport()
        return transport is not None and bool(transport.is_active())

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def run(
        self,
        command: Sequence[str] | str,
        *,
        deadline_s: float,
        check: bool = True,
        name: str | None = None,
    ) -> Output:
        """Run an argv (quoted for the remote shell) or a constant script text; return what it left.

        Raises CommandFailed (unless `check` is false), CommandTimedOut after `deadline_s`, Unreachable when the
        connection breaks. Past its deadline the command is only left alone: `run_to_end` ends it. Never pass data from
        a client in a script text: pass an argv.
        """
        text = command if isinstance(command, str) else shlex.join(command)
        called = f"{name or text.split(chr(10), 1)[0][:60]} on {self.target.name}"
        began = time.monotonic()
        try:
            result = self._connection.run(
                text,
                hide=True,
                warn=True,
                in_stream=False,
                timeout=deadline_s,
                encoding="utf-8",
            )
        except invoke.exceptions.CommandTimedOut as exc:
            raise CommandTimedOut(called, deadline_s, exc.result.stderr.strip()[-2000:]) from exc
        except (paramiko.SSHException, EOFError, OSError) as exc:
            raise Unreachable(self.target.name, f"the connection broke: {exc}") from exc
        if result.exited == _NO_STATUS:
            # The channel was closed: by Fabric's timer, which may end after us, by the network, or after a signal.
            if time.monotonic() - began >= deadline_s:
                raise CommandTimedOut(called, deadline_s, result.stderr.strip()[-2000:])
            if not self.alive:
                raise Unreachable(self.target.name, f"the connection broke during {called}")
        if check and result.exited != 0:
            raise CommandFailed(called, result.exited, (result.stderr or result.stdout).strip()[-2000:])
        return Output(result.exited, result.stdout, result.stderr)

    def run_to_end(self, command: Sequence[str], *, deadline_s: float, name: str) -> Output:
        """Run an argv as `run` does; at its deadline it and its children are ended there, too (timeout of coreutils).

        For what writes: nothing of it goes on after CommandTimedOut.
        """
        ended = ["timeout", f"--kill-after={GRACE_S}", f"{deadline_s:g}", *command]
        began = time.monotonic()
        try:
            return self.run(ended, deadline_s=deadline_s + 2 * GRACE_S, name=name)
        except CommandTimedOut as exc:
            raise CommandTimedOut(exc.args[0], deadline_s, exc.args[2]) from exc
        except CommandFailed as exc:
            if exc.args[1] in _TIMEOUT_STATUS and time.monotonic() - began >= deadline_s:
                raise CommandTimedOut(exc.args[0], deadline_s, exc.args[2]) from exc
            raise

    def fetch(self, path: str, destination: Path, on_progress: Callable[[int, int | None], None] | None = None) -> int:
        """Copy a file of the system by sftp; its bytes.

        Raises CommandFailed when it is not there, Unreachable when the connection breaks or nothing comes for 2 min.
        """
        called = f"sftp of {path} on {self.target.name}"
        try:
            with self._connection.client.open_sftp() as sftp:
                sftp.get_channel().settimeout(STALL_S)
                sftp.get(path, str(destination), on_progress)
        except FileNotFoundError as exc:
            raise CommandFailed(called, 1, "there is no such file") from exc
        except (paramiko.SSHException, EOFError, OSError) as exc:
            raise Unreachable(self.target.name, f"{called}: {exc}") from exc
        return destination.stat().st_size


class _Kept:
    """Open connections, for threads that share them: a system has one, whose channels are used side by side."""

    def __init__(self) -> None:
        self._shells: dict[SshTarget, Shell] = {}
        self._lock = Lock()

    def shell(self, target: SshTarget) -> Shell:
        with self._lock:
            if target in self._shells and not self._shells[target].alive:
                self._shells.pop(target).close()
            if target not in self._shells:
                self._shells[target] = _open(target)
            return self._shells[target]

    def close(self) -> None:
        for shell in self._shells.values():
            shell.close()


_kept: ContextVar[_Kept | None] = ContextVar("_kept", default=None)


@contextmanager
def kept_open() -> Iterator[None]:
    """Within the block, connections stay open for the next `connect` to the same system: a login costs 0.3 to 3 s."""
    kept = _Kept()
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)
        kept.close()


def answers(target: SshTarget) -> bool:
    """Whether anything accepts connections at the address, whoever it lets in."""
    try:
        socket.create_connection((target.address, target.port), timeout=CONNECT_DEADLINE_S).close()
    except OSError:
        return False
    return True


@contextmanager
def connect(target: SshTarget) -> Iterator[Shell]:
    """An open connection to `target`, closed at the end unless `kept_open` says otherwise.

    Raises AccessDenied for a host key that is unknown or changed and for a refused login, Unreachable when there is
    no answer.
    """
    kept = _kept.get()
    if kept is not None:
        yield kept.shell(target)
        return
    shell = _open(target)
    try:
        yield shell
    finally:
        shell.close()


def _open(target: SshTarget) -> Shell:
    connection = fabric.Connection(
        target.address,
        user=target.user,
        port=target.port,
        connect_timeout=CONNECT_DEADLINE_S,
        config=fabric.Config(overrides={"load_ssh_configs": False}),
        connect_kwargs={
            "key_filename": str(target.private_key_file),
            "look_for_keys": False,
            "allow_agent": False,
            "banner_timeout": CONNECT_DEADLINE_S,
            "auth_timeout": CONNECT_DEADLINE_S,
        },
    )
    client = connection.client
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    try:
        _log_in(target, connection, client)
    except BaseException:
        connection.close()
        raise
    transport = client.get_transport()
    if transport is not None:
        transport.set_keepalive(10)
    return Shell(target, connection)


def _log_in(target: SshTarget, connection: fabric.Connection, client: paramiko.SSHClient) -> None:
    where = f"{target.name} ({target.address} port {target.port})"
    fix = f"compare the key with the system's own and correct {target.known_hosts_file}"
    try:
        client.load_host_keys(str(target.known_hosts_file))
        connection.open()
    except paramiko.BadHostKeyException as exc:
        raise AccessDenied(where, "its host key has changed", fix) from exc
    except paramiko.AuthenticationException as exc:
        raise AccessDenied(where, f"login of {target.user} failed", f"authorise {target.private_key_file}") from exc
    except FileNotFoundError as exc:
        raise ConfigError("file is missing", str(exc.filename), "create it or correct the SSH identity") from exc
    except (TimeoutError, socket.gaierror, OSError, EOFError) as exc:
        raise Unreachable(where, str(exc) or type(exc).__name__) from exc
    except paramiko.SSHException as exc:
        if "not found in known_hosts" in str(exc):
            raise AccessDenied(where, "its host key is unknown", fix) from exc
        raise Unreachable(where, str(exc)) from exc
