"""The facts of a client that is no Linux: who it is, and its own tools' reports."""

from datetime import datetime

from tasks.drivers.ssh import Shell
from tasks.errors import CommandFailed
from tasks.model.facts import Facts
from tasks.model.platform import PROFILES, Platform

DEADLINE_S = 120


def collect(shell: Shell, platform: Platform, now: datetime) -> Facts:
    """The facts of the client behind `shell`, as of `now`; a report that its system cannot give is left out.

    Raises CommandFailed when it does not even say who it is.
    """
    profile = PROFILES[platform]
    who = shell.run(profile.about, deadline_s=DEADLINE_S, name=f"about this {profile.title}")
    lines = [line.strip() for line in who.stdout.splitlines() if line.strip()]
    if len(lines) != 4:
        said = " | ".join(lines)[:200]
        raise CommandFailed(f"about {shell.target.name}", who.status, f"this is no {profile.title}: it said {said!r}")
    system, hostname, version, architecture = lines
    reports = {}
    for name, line in profile.reports.items():
        output = shell.run(line, deadline_s=DEADLINE_S, check=False, name=f"report of {name}")
        if output.stdout.strip():
            reports[name] = output.stdout
    return nameless(platform, now).model_copy(
        update={
            "hostname": hostname,
            "os_name": system,
            "os_version": version,
            "architecture": architecture,
            "reports": reports,
        }
    )


def nameless(platform: Platform, now: datetime) -> Facts:
    """What is known of a client on which no command can be run."""
    return Facts(
        collected=now,
        hostname="",
        os_id=platform.value,
        os_version="",
        os_name=PROFILES[platform].title,
        kernel="",
        architecture="",
        boot_mode="unknown",
        machine_id="",
        block_devices=(),
        file_systems=(),
    )
