"""Where a system is reached over ssh and with which identity."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SshTarget:
    """A system behind ssh. Keys are named by file, never carried; `name` is what operators call the system."""

    name: str
    address: str
    user: str
    port: int
    private_key_file: Path
    known_hosts_file: Path


def ssh_argv(target: SshTarget, *, connect_timeout_s: int = 15) -> list[str]:
    """The ssh(1) command without the host: strict host keys, one key, no questions, no configuration of the user's."""
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": _quoted(target.known_hosts_file),
        "GlobalKnownHostsFile": "/dev/null",
        "IdentityFile": _quoted(target.private_key_file),
        "IdentitiesOnly": "yes",
        "ConnectTimeout": str(connect_timeout_s),
        "ServerAliveInterval": "10",
        "ServerAliveCountMax": "3",
        "LogLevel": "ERROR",
        # Processors have AES in hardware; under emulation too it was a quarter faster than ChaCha20.
        "Ciphers": "^aes128-gcm@openssh.com",
    }
    argv = ["ssh", "-F", "none", "-p", str(target.port), "-l", target.user]
    for key, value in options.items():
        argv += ["-o", f"{key}={value}"]
    return argv


def _quoted(path: Path) -> str:
    """A file's name as ssh_config(5) reads it: spaces would end it, % would begin a token."""
    return '"' + str(path).replace("%", "%%") + '"'
