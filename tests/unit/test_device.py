"""Configurations of devices: noise is no change, secrets are never shown, half of one is not taken."""

from __future__ import annotations

import pytest

from tasks.model.device import PROFILES, REDACTED, changes, is_whole, redacted, settled

IOS = """Building configuration...

Current configuration : 1234 bytes
!
! Last configuration change at 10:11:12 UTC Wed Nov 25 2026 by admin
hostname sw1
!
interface Vlan1\r
 ip address 192.0.2.5 255.255.255.0 \r
ntp clock-period 17179871
end
"""


def test_what_differs_each_time_is_no_change() -> None:
    later = IOS.replace("10:11:12", "11:00:00").replace("1234", "1240").replace("17179871", "17179999")
    profile = PROFILES["cisco_ios"]
    assert settled(IOS, profile) == settled(later, profile)
    assert settled(IOS, profile).splitlines()[:4] == ["!", "hostname sw1", "!", "interface Vlan1"]
    assert changes(settled(IOS, profile), settled(later, profile)) == []


@pytest.mark.parametrize("text", ["", "\n", "end\n", IOS.replace("end\n", ""), IOS[:-40], "% Invalid input\n"])
def test_half_a_configuration_is_not_whole(text: str) -> None:
    assert is_whole(IOS, PROFILES["cisco_ios"])
    assert not is_whole(text, PROFILES["cisco_ios"])


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("enable secret 5 $1$abcd$XYZ", "$1$abcd$XYZ"),
        ("enable secret 9 $9$hash", "$9$hash"),
        ("username admin privilege 15 password 7 0822455D0A16", "0822455D0A16"),
        ("snmp-server community s3cr3t RO", "s3cr3t"),
        (" neighbor 192.0.2.1 password bgp-pass", "bgp-pass"),
        ('set system root-authentication encrypted-password "$6$x y"', "$6$x y"),
        ("set snmp community topsecret authorization read-only", "topsecret"),
        ("wpa-psk ascii-key", "ascii-key"),
        ("password manager user-name admin sha1 aa11", "aa11"),
        ("key-string 7 13061E010803", "13061E010803"),
        ("ldap.bindpw=hunter2", "hunter2"),
        ("tacacs-server key 7 0102", "0102"),
        ("radius-server host 192.0.2.9 key topkey", "topkey"),
    ],
)
def test_secret_is_struck_out_and_the_rest_stays(line: str, secret: str) -> None:
    shown = redacted(line)
    assert secret not in shown
    assert REDACTED in shown
    assert shown.split()[0].split("=")[0] == line.split(maxsplit=1)[0].split("=", maxsplit=1)[0]


@pytest.mark.parametrize("line", ["hostname sw1", "key chain core", "ip ssh version 2"])
def test_what_is_no_secret_is_left(line: str) -> None:
    assert redacted(line) == line


def test_change_is_shown_and_a_changed_secret_is_only_said() -> None:
    assert changes("a\nenable secret 5 x\nend\n", "a\nb\nenable secret 5 x\nend\n")[1:] == [
        " a",
        "+b",
        f" enable secret 5 {REDACTED}",
        " end",
    ]
    assert changes("enable secret 5 x\nend\n", "enable secret 5 y\nend\n")[1:3] == [
        "-enable secret 5 <redacted>",
        "+enable secret 5 <redacted, changed>",
    ]
