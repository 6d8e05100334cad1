"""The ssh command line: strict, one key, nobody's configuration."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from tasks.drivers import ssh
from tasks.model.ssh_target import SshTarget, ssh_argv


def target(**changed: object) -> SshTarget:
    values = {"name": "web 1", "address": "web1", "user": "backup", "port": 2222}
    values |= {"private_key_file": Path("/etc/gbs/key"), "known_hosts_file": Path("/etc/gbs/known_hosts")}
    return SshTarget(**{**values, **changed})  # type: ignore[arg-type]


def understood(made: SshTarget) -> dict[str, str]:
    """What ssh itself takes from the command line (ssh -G)."""
    argv = [*ssh_argv(made), "-G", made.address]
    output = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return dict(line.split(" ", 1) for line in output.splitlines() if " " in line)


def test_ssh_is_strict_as_ssh_understands_it() -> None:
    options = understood(target())
    assert options["stricthostkeychecking"] in ("yes", "true")
    assert options["batchmode"] == "yes"
    assert options["identitiesonly"] == "yes"
    assert options["identityfile"] == "/etc/gbs/key"
    assert options["userknownhostsfile"] == "/etc/gbs/known_hosts"
    assert options["globalknownhostsfile"] == "/dev/null"
    assert (options["user"], options["port"], options["hostname"]) == ("backup", "2222", "web1")
    assert int(options["connecttimeout"]) == 15
    assert int(options["serveraliveinterval"]) * int(options["serveralivecountmax"]) == 30


@pytest.mark.parametrize("name", ["my key", "50%", "%h", "a'b", "a#b"])
def test_file_with_odd_name_is_one_file_to_ssh(name: str) -> None:
    """A space in the name of the key's file ended the option: `extra arguments at end of line`."""
    options = understood(target(private_key_file=Path("/k") / name, known_hosts_file=Path("/h") / name))
    assert options["identityfile"].replace("%%", "%") == f"/k/{name}"
    assert options["userknownhostsfile"].replace("%%", "%") == f"/h/{name}"


def test_port_and_user_never_come_from_the_address() -> None:
    argv = ssh_argv(target(address="fe80::1%eth0"))
    assert "fe80::1%eth0" not in argv
    assert argv[:3] == ["ssh", "-F", "none"]


def test_a_system_answers_while_anything_listens_at_its_address() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        system = target(address="127.0.0.1", port=listener.getsockname()[1])
        assert not ssh.answers(system)
        listener.listen()
        assert ssh.answers(system), "it says nothing, as a system whose sshd hangs"
    assert not ssh.answers(system)
    assert not ssh.answers(target(address="no-such-host.invalid"))
