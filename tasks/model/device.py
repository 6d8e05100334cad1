"""Configurations of network and SAN devices: how each dialect is asked, what of it is noise, what of it is secret."""

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

DeviceType = Literal[
    "arista_eos", "brocade_fos", "cisco_ios", "cisco_nxos", "frr", "hp_procurve", "juniper_junos", "vyos"
]


@dataclass(frozen=True)
class DeviceProfile:
    """One dialect. `driver` is netmiko's name of it (https://ktbyers.github.io/netmiko/PLATFORMS.html)."""

    driver: str
    running: str
    startup: str | None = None
    enable: bool = False
    """Whether it shows its configuration to privileged users only."""
    end: str | None = None
    """The last line of a whole configuration, where the dialect has one."""
    noise: tuple[str, ...] = ()
    """Lines that differ each time though nothing was changed."""
    put_back: tuple[str, ...] = ("enter the lines that come and go, each in its place, and save them",)
    """How an operator makes a kept configuration the running one."""


_CISCO_NOISE = (
    r"Building configuration\.\.\.",
    r"Current configuration ?: .*",
    r"! Last configuration change at .*",
    r"! NVRAM config last updated at .*",
    r"!Time: .*",
    r"!Running configuration last done at: .*",
    r"ntp clock-period \d+",
    r"Using \d+ out of \d+ bytes.*",
)
_CISCO_PUT_BACK = (
    "copy scp: flash:back.cfg        (from a machine that may have the file)",
    "configure replace flash:back.cfg list      (shows each command; asks before it begins)",
    "copy running-config startup-config",
)
PROFILES: dict[DeviceType, DeviceProfile] = {
    "arista_eos": DeviceProfile(
        "arista_eos", "show running-config", "show startup-config", enable=True, end="end",
        noise=(r"! Startup-config last modified at .*",),
    ),
    "brocade_fos": DeviceProfile("brocade_fos", "configshow -all", noise=(r"date = .*", r"\[.*uptime.*\]")),
    "cisco_ios": DeviceProfile(
        "cisco_ios", "show running-config", "show startup-config", enable=True, end="end", noise=_CISCO_NOISE,
        put_back=_CISCO_PUT_BACK,
    ),
    "cisco_nxos": DeviceProfile("cisco_nxos", "show running-config", "show startup-config", noise=_CISCO_NOISE),
    # Its `show startup-config` says nothing (8.4).
    "frr": DeviceProfile(
        "cisco_ios", "show running-config", end="end", noise=(*_CISCO_NOISE, r"frr version .*")
    ),
    "hp_procurve": DeviceProfile(
        "hp_procurve", "show running-config", "show config", enable=True, noise=(r"; .* Configuration Editor; .*",)
    ),
    "juniper_junos": DeviceProfile(
        "juniper_junos", "show configuration | display set | no-more", noise=(r"## Last (commit|changed): .*",)
    ),
    "vyos": DeviceProfile("vyos", "show configuration commands | no-more"),
}  # fmt: skip
_SECRET = re.compile(
    r"""(?ix)
    (?P<keep>
        \b(?:password|passwd|secret|passphrase|pre-shared-key|shared-secret|wpa-psk|key-string|key-chain-password
           |community|authentication-key|md5|private-key|encrypted-password|plaintext-password|bindpw|token|api-key
           |(?:tacacs|radius)\S* \s (?:.*\s)? key)\b
        (?:[-\w]*)
        (?: \s+ (?:\d{1,2}|sha1|sha256|sha512|plaintext|encrypted|hash|ciphertext|manager|operator
                  |user-name \s+ \S+) \b )*
        \s* [=:]? \s*
    )
    (?P<value> "[^"]*" | '[^']*' | \S+ )
    """
)
REDACTED = "<redacted>"
CHANGED = "<redacted, changed>"


@dataclass(frozen=True)
class DeviceTarget:
    """A device behind ssh. Secrets are named by file, never carried, and never shown."""

    name: str
    address: str
    port: int
    user: str
    known_hosts_file: Path
    password_file: Path | None = field(default=None, repr=False)
    private_key_file: Path | None = field(default=None, repr=False)
    enable_file: Path | None = field(default=None, repr=False)


def settled(text: str, profile: DeviceProfile) -> str:
    """The configuration without what differs from one look to the next: noise, line ends, trailing white space."""
    noise = re.compile("|".join(f"(?:{pattern})" for pattern in profile.noise)) if profile.noise else None
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    kept = [line for line in lines if noise is None or not noise.fullmatch(line.strip())]
    return "\n".join(kept).strip("\n") + "\n"


def is_whole(text: str, profile: DeviceProfile) -> bool:
    """Whether this is a configuration from its beginning to its end, as far as the dialect lets us tell."""
    lines = [line.strip() for line in settled(text, profile).splitlines() if line.strip()]
    return len(lines) >= 2 and (profile.end is None or lines[-1] == profile.end)


def redacted(text: str, before: str | None = None) -> str:
    """The configuration with its secrets struck out, for what people are shown.

    Secrets that the configuration `before` did not have are called changed.
    """

    def struck(found: re.Match[str]) -> str:
        changed = before is not None and found[0] not in before
        return f"{found['keep']}{CHANGED if changed else REDACTED}"

    return _SECRET.sub(struck, text)


def changes(before: str, after: str) -> list[str]:
    """The lines that came and went, as `diff -U 3` shows them, without secrets: of those it says that they changed."""
    shown = difflib.unified_diff(redacted(before).splitlines(), redacted(after, before).splitlines(), lineterm="", n=3)
    return [line for line in shown if not line.startswith(("---", "+++"))]
