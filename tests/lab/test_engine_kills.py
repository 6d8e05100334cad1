"""Engines whose rotation is killed between any two of its steps: no point goes before the new one is there."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from tasks.errors import CommandFailed
from tests.lab.engine_bench import POLICY, Bench, nothing
from tests.lab.test_engine_contract import OTHERS, copies, copy_of, killed_after

BEFORE = {"daily.0": 3, "daily.1": 2, "weekly.0": 1}
AFTER = {"daily.0": 10, "daily.1": 3, "weekly.0": 1}


def ready(kind: str, folder: Path, trash_days: int = 0) -> Bench:
    """Three nights are kept, and a fourth is synced: the rotation gives up the second, which is due at once."""
    bench = Bench(kind, folder, POLICY.model_copy(update={"trash_days": trash_days}))
    for number in (1, 2, 3):
        bench.kept(number)
    bench.night(10)
    bench.engine().sync(bench.manifest, nothing)
    assert set(bench.days().values()) == {1, 2, 3}
    return bench


def rest_of_stage_2(bench: Bench) -> None:
    """What comes after the sync."""
    bench.engine().rotate()
    bench.engine().tidy()


@pytest.mark.parametrize("kind", OTHERS)
def test_rotation_killed_between_any_two_steps_removes_nothing_before_the_new_point_is_there(
    kind: str, tmp_path: Path
) -> None:
    (tmp_path / "prepared").mkdir()
    prepared = ready(kind, tmp_path / "prepared")
    for steps in itertools.count():
        bench = copy_of(prepared, tmp_path / str(steps))
        killed = killed_after(steps, lambda here=bench: rest_of_stage_2(here))  # type: ignore[misc]
        there = set(bench.days().values())
        assert there >= {1, 3}
        assert 10 in there or 2 in there, "what is given up is a point until the new one is"
        assert 10 in there or copies(bench) == 4, "nothing is removed before the new one is a point"
        bench.sync_and_rotate()
        if bench.days() != AFTER:  # what was not given up is so with the next night
            assert set(bench.days().values()) == {1, 2, 3, 10}
            bench.kept(11)
            assert set(bench.days().values()) >= {1, 10, 11}
        else:
            assert copies(bench) == 3
        if not killed:
            break
    assert steps > 1, "it was killed more than once"
    assert bench.nights() == AFTER


@pytest.mark.parametrize("call", [1, 2])
def test_restic_killed_between_the_two_halves_of_a_change_of_tags_costs_no_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """It writes the snapshot with the new tags and removes the old one: killed between, there are both."""
    bench = ready("restic", tmp_path, trash_days=3)
    folder = tmp_path / "bin"
    folder.mkdir()
    strace = f"{shutil.which('strace')} -f -qq -o /dev/null --trace=unlinkat --inject=unlinkat:signal=KILL:when=1"
    program = folder / "restic"
    program.write_text(
        f"#!/bin/bash\nreal=({shutil.which('restic')})\n"
        f'case " $* " in *" tag "*) echo >>{folder}/calls\n'
        f"[ $(wc -l <{folder}/calls) -ne {call} ] || real=({strace} ${{real[0]}}) ;;\nesac\n"
        'exec "${real[@]}" "$@"\n'
    )
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        with pytest.raises(CommandFailed, match="restic tag failed with status"):
            bench.engine().rotate()
    assert bench.restic("snapshots", "--no-lock").count("web1 ") == 5, "one of them is there twice"
    there = set(bench.days().values())
    assert there >= {1, 3}
    assert 10 in there or 2 in there
    bench.sync_and_rotate()
    assert {1, 3, 10} <= set(bench.nights().values())
    bench.kept(11)
    assert set(bench.nights().values()) == {1, 10, 11}
    bench.kept(17)
    assert "no errors were found" in bench.restic("check", "--read-data")
