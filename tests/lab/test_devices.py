"""Configurations of devices: a real router (FRRouting) over ssh, and two dialects of a scripted stand-in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.drivers import device
from tasks.errors import AccessDenied, CommandFailed, ConfigError, Unreachable
from tasks.model.device import PROFILES, DeviceTarget, DeviceType, changes, settled
from tests.lab.database_client import DatabaseClient
from tests.lab.scripted_device import IOS, JUNOS, PAGE, Dialect, ScriptedDevice
from tests.lab.sshd import make_key

CISCO = "\n".join(
    ["Building configuration...", "", "version 15.2", *(f"vlan {number}" for number in range(2, 90)), "end"]
)
JUNIPER = "\n".join(f"set interfaces ge-0/0/{number} unit 0 family inet" for number in range(90))
SAID: dict[DeviceType, Dialect] = {
    "cisco_ios": dataclasses.replace(IOS, commands={"show running-config": CISCO, "show startup-config": CISCO}),
    "juniper_junos": dataclasses.replace(JUNOS, commands={PROFILES["juniper_junos"].running: JUNIPER}),
}
KINDS = pytest.mark.parametrize("kind", list(SAID))


class Lab:
    """A scripted device and how it is reached."""

    def __init__(self, kind: DeviceType, folder: Path) -> None:
        self.server = ScriptedDevice(dataclasses.replace(SAID[kind], commands=dict(SAID[kind].commands)))
        self.server.start()
        self.server.trust(folder / "known_hosts")
        for name, secret in (("password", self.server.password), ("enable", IOS.enable_secret)):
            (folder / name).write_text(f"{secret}\n")
            (folder / name).chmod(0o600)
        self.folder, self.profile = folder, PROFILES[kind]
        self.target = DeviceTarget(
            "sw1", "127.0.0.1", self.server.port, self.server.user, folder / "known_hosts",
            password_file=folder / "password", enable_file=folder / "enable",
        )  # fmt: skip

    def fetch(self) -> device.Configuration:
        return device.fetch(self.target, self.profile)


@pytest.fixture
def lab(kind: DeviceType, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(kind, tmp_path)
    yield made
    made.server.stop()


@KINDS
def test_whole_configuration_comes_past_the_pager_and_privileges(lab: Lab, kind: DeviceType) -> None:
    assert len(SAID[kind].commands[lab.profile.running].splitlines()) > 3 * PAGE
    found = lab.fetch()
    assert found.running.splitlines()[-3:] == SAID[kind].commands[lab.profile.running].splitlines()[-3:]
    assert "ore" not in found.running.replace("core", "")
    assert (found.startup is None) == (lab.profile.startup is None)
    assert not [line for line in lab.server.asked if line.startswith(("conf", "write", "copy", "set interfaces"))]


@KINDS
def test_unknown_and_changed_host_keys_are_refused_before_the_login(lab: Lab, kind: DeviceType) -> None:
    known = lab.folder / "known_hosts"
    other = ScriptedDevice(SAID[kind])
    other.start()
    other.trust(lab.folder / "other")
    changed = (lab.folder / "other").read_text().replace(str(other.port), str(lab.server.port))
    other.stop()
    for content in ("", changed):
        known.write_text(content)
        with pytest.raises(AccessDenied, match="host key is unknown or has changed"):
            lab.fetch()
    assert (lab.server.logins, lab.server.asked) == ([], [])


@KINDS
def test_wrong_password_is_refused_and_not_shown(lab: Lab, kind: DeviceType) -> None:
    (lab.folder / "password").write_text("wr0ng-one")
    with pytest.raises(AccessDenied, match="login of backup failed") as refused:
        lab.fetch()
    assert "wr0ng-one" not in str(refused.value) + repr(lab.target)


@pytest.mark.parametrize("kind", ["cisco_ios"])
def test_wrong_enable_secret_is_refused(lab: Lab, kind: DeviceType) -> None:
    (lab.folder / "enable").write_text("wrong")
    with pytest.raises(AccessDenied, match="does not let us see"):
        lab.fetch()


@KINDS
def test_what_is_no_whole_configuration_is_refused(lab: Lab, kind: DeviceType) -> None:
    lab.server.dialect.commands[lab.profile.running] = SAID[kind].refusal
    with pytest.raises(CommandFailed, match=r"Invalid input|syntax error"):
        lab.fetch()
    lab.server.dialect.commands[lab.profile.running] = "version 15.2"
    with pytest.raises(CommandFailed, match="not a whole configuration: 1 lines"):
        lab.fetch()


@KINDS
def test_device_that_is_not_there_is_unreachable(lab: Lab, kind: DeviceType) -> None:
    lab.server.stop()
    with pytest.raises(Unreachable):
        lab.fetch()


@KINDS
def test_secret_that_others_can_read_is_refused(lab: Lab, kind: DeviceType) -> None:
    (lab.folder / "password").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        lab.fetch()


class Router:
    """FRRouting in a system of the lab, and how its prompt is reached."""

    def __init__(self, system: DatabaseClient, target: DeviceTarget) -> None:
        self.system, self.target = system, target

    def settled(self) -> str:
        return settled(device.fetch(self.target, PROFILES["frr"]).running, PROFILES["frr"])

    def do(self, verb: str, *words: str) -> None:
        self.system.engine("frr", verb, *words)


@pytest.fixture(scope="module")
def router(lab_folder: Path) -> Iterator[Router]:
    """A running router."""
    key, known = lab_folder / "id_router", lab_folder / "known_router"
    system = DatabaseClient("core1", lab_folder / "core1", make_key(key, "gbs tests"))
    try:
        system.start()
        system.engine("frr", "start")
        known.write_text(system.known_hosts_line + "\n")
        yield Router(system, DeviceTarget("core1", "127.0.0.1", system.ssh_port, "backup", known, private_key_file=key))
    finally:
        system.remove()


def test_real_router_tells_its_configuration_and_what_was_changed(router: Router) -> None:
    before = router.settled()
    assert "ip address 192.0.2.1/32" in before
    assert before == router.settled()
    router.do("configure", "ip route 198.51.100.0/24 blackhole")
    added = [line for line in changes(before, router.settled()) if line.startswith("+")]
    assert added[0] == "+ip route 198.51.100.0/24 blackhole"
