"""A recovery key, made by age-keygen(1) as operators do: the public half is for the inventory."""

from __future__ import annotations

import subprocess
from pathlib import Path


def recovery_key(path: Path) -> str:
    """The public half of the key in `path`, which is made when it is not there."""
    if not path.exists():
        subprocess.run(["age-keygen", "-o", path], check=True, capture_output=True)
    return subprocess.run(["age-keygen", "-y", path], check=True, capture_output=True, text=True).stdout.strip()
