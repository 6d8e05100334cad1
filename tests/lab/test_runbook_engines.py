"""The commands of other engines in a runbook, run by bash: the night comes back with nothing of ours and no store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks.drivers.runbooks import bringing
from tasks.model.night_choice import Night
from tasks.model.runbook_disks import prove_night
from tasks.model.runbook_text import HELPERS
from tasks.model.shell_text import word
from tests.lab import by_hand
from tests.lab.engine_bench import Bench
from tests.unit.test_runbook import plain

FILES = {"plain": "1\n", "with space": "2\n", "a$(id)'\"\nb": "3\n"}


@pytest.mark.parametrize("kind", ["restic", "command"])
def test_night_is_brought_and_proven_by_the_engines_own_command(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    bench = Bench(kind, tmp_path / "a b")
    bench.kept(1, FILES)
    night = Night("daily.0", None, bench.manifest)
    runbook = plain(night=bench.manifest, night_place=None, bringing=bringing(bench.engine(), night))
    shutil.rmtree(bench.store.root)
    brought = tmp_path / "it's brought"
    step = f"{HELPERS}\nNIGHT={word(str(brought))}\n{prove_night(runbook)}\n"
    done = by_hand.run(f"set -euo pipefail\n{step}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok: every file of the night has its sha256" in done.stdout
    assert {path.name: path.read_text() for path in (brought / "data").iterdir()} == FILES
    (brought / "data/plain").write_text("2\n")
    damaged = by_hand.run(f"set -euo pipefail\n{step}".replace("mkdir -p", "exit 0; mkdir -p"))
    assert (damaged.returncode, "FAILED: the night is damaged" in damaged.stderr) == (1, True)
