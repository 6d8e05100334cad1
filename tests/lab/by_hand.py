"""Runs a runbook as somebody does who has lost everything of GBS: bash, the system's own programs, the stores."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.lab.accelerator import accelerator

_DEADLINE_S = 1500
_SETTINGS = {} if accelerator() == "kvm" else {"LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}


def decided(script: str, **values: Path | str) -> str:
    """The script with other values in the variables on its top, each of which must be there."""
    for name, value in values.items():
        lines = script.split("\n")
        (number,) = [number for number, line in enumerate(lines) if line.startswith(f"{name}=")]
        lines[number] = f"{name}={value}"
        script = "\n".join(lines)
    return script


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run it with nothing in the environment that is ours."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", **_SETTINGS}
    argv = ["bash", "-s"]
    return subprocess.run(
        argv, input=script, env=environment, capture_output=True, text=True, timeout=_DEADLINE_S, check=False
    )
