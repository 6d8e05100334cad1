"""What a test run that was killed left behind: its hosts and servers are ended, its folders removed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.lab.process import ProcessRecord

LABS = Path("/var/lib/gbs-lab")
_RECORDS = ("host.json", "link.json", "server.json", "sshd.json", "worker.json")


def sweep() -> None:
    """Clear the labs of test runs (`test-…-<pid>`) whose process has gone; the demo's stays."""
    for folder in LABS.glob("test-*"):
        pid = folder.name.rpartition("-")[2]
        if not pid.isdecimal() or os.path.exists(f"/proc/{pid}"):
            continue
        for path in (path for name in _RECORDS for path in folder.rglob(name)):
            record = ProcessRecord.load(path)
            if record is not None:
                record.kill()
        mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for place in (place for place in mounted if place.startswith(f"{folder}/")):
            subprocess.run(["umount", place], check=False)
        shutil.rmtree(folder, ignore_errors=True)
