"""Whether the lab's guests run with KVM, found out once per boot of the machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tasks.drivers.kvm_probe import kvm_works
from tests.lab.process import boot_id


def cache_folder() -> Path:
    """The lab's cache (GBS_LAB_CACHE, else /var/cache/gbs-lab), made when missing."""
    folder = Path(os.environ.get("GBS_LAB_CACHE") or "/var/cache/gbs-lab")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def accelerator() -> str:
    """'kvm' when it works here (tasks.drivers.kvm_probe), else 'tcg'; tried once per boot of the machine."""
    noted = cache_folder() / "accelerator.json"
    try:
        note = json.loads(noted.read_text(encoding="ascii"))
        if note["boot"] == boot_id():
            return str(note["accelerator"])
    except (FileNotFoundError, ValueError, KeyError):
        pass
    answer = "kvm" if kvm_works() else "tcg"
    partial = noted.with_name(f"accelerator.{os.getpid()}.partial")
    partial.write_text(json.dumps({"boot": boot_id(), "accelerator": answer}), encoding="ascii")
    partial.rename(noted)
    return answer
