"""The configuration of a network or SAN device, asked for as an operator would at its prompt (netmiko).

netmiko accepts unknown host keys by itself; here only those of our known_hosts file are.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko
from netmiko import ConnectHandler
from netmiko.exceptions import (
    NetmikoAuthenticationException,
    NetmikoBaseException,
    NetmikoTimeoutException,
    ReadTimeout,
)

from tasks.drivers.secret_file import read_secret
from tasks.errors import AccessDenied, CommandFailed, CommandTimedOut, Unreachable
from tasks.model.device import DeviceProfile, DeviceTarget, is_whole

CONNECT_DEADLINE_S = 20
READ_DEADLINE_S = 120
_REFUSED = ("% Invalid input", "% Ambiguous command", "% Unknown command", "syntax error", "Invalid command")


@dataclass(frozen=True)
class Configuration:
    """What a device said, as it said it; `startup` is None where its dialect has none of its own."""

    running: str
    startup: str | None


def fetch(target: DeviceTarget, profile: DeviceProfile) -> Configuration:
    """Log in, ask for the running and the startup configuration, log out; nothing is changed there.

    Raises AccessDenied for a host key that is unknown or changed and for a refused login, Unreachable without an
    answer, CommandTimedOut when a prompt does not come back, CommandFailed when what came is not a whole configuration.
    """
    with _logged_in(target, profile) as connection:
        running = _ask(connection, target, profile, profile.running)
        startup = _ask(connection, target, profile, profile.startup) if profile.startup else None
    return Configuration(running, startup)


@contextlib.contextmanager
def _logged_in(target: DeviceTarget, profile: DeviceProfile) -> Iterator[Any]:
    where = f"{target.name} ({target.address} port {target.port})"
    secrets = {
        "password": _secret(target.password_file),
        "secret": _secret(target.enable_file),
        "key_file": str(target.private_key_file) if target.private_key_file else None,
    }
    try:
        connection = ConnectHandler(
            device_type=profile.driver,
            host=target.address,
            port=target.port,
            username=target.user,
            use_keys=target.private_key_file is not None,
            ssh_strict=True,
            alt_host_keys=True,
            alt_key_file=str(target.known_hosts_file),
            conn_timeout=CONNECT_DEADLINE_S,
            auth_timeout=CONNECT_DEADLINE_S,
            banner_timeout=CONNECT_DEADLINE_S,
            **secrets,
        )
    except NetmikoAuthenticationException as exc:
        raise AccessDenied(where, f"login of {target.user} failed", "correct the login or its files") from exc
    except (NetmikoTimeoutException, paramiko.SSHException) as exc:
        # netmiko wraps what paramiko raises, and keeps its words.
        if "not found in known_hosts" in str(exc) or "Host key for server" in str(exc):
            fix = f"compare the key with the device's own and correct {target.known_hosts_file}"
            raise AccessDenied(where, "its host key is unknown or has changed", fix) from exc
        raise Unreachable(where, _line(exc)) from exc
    except (NetmikoBaseException, ValueError, OSError, EOFError) as exc:
        raise Unreachable(where, _line(exc)) from exc
    try:
        if profile.enable and not connection.check_enable_mode():
            _enable(connection, target)
        yield connection
    finally:
        with contextlib.suppress(Exception):
            connection.disconnect()


def _enable(connection: Any, target: DeviceTarget) -> None:
    try:
        connection.enable()
    except (NetmikoBaseException, ValueError) as exc:
        raise AccessDenied(
            target.name, "it does not let us see its configuration", "give its login an enable_file"
        ) from exc


def _ask(connection: Any, target: DeviceTarget, profile: DeviceProfile, command: str) -> str:
    called = f"{command!r} on {target.name}"
    try:
        text = str(connection.send_command(command, read_timeout=READ_DEADLINE_S))
    except ReadTimeout as exc:
        raise CommandTimedOut(called, READ_DEADLINE_S, _line(exc)) from exc
    except (NetmikoBaseException, OSError, EOFError) as exc:
        raise Unreachable(target.name, _line(exc)) from exc
    refused = next((line.strip() for line in text.splitlines() if line.strip().startswith(_REFUSED)), None)
    if refused is not None:
        raise CommandFailed(called, 1, refused)
    if not is_whole(text, profile):
        raise CommandFailed(called, 1, f"it is not a whole configuration: {len(text.splitlines())} lines came")
    return text


def _secret(path: Path | None) -> str:
    return read_secret(path) if path else ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
