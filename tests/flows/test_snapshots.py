"""Snapshots around the pull of a client's files: taken away whatever happens, and told."""

import json
from typing import Any

import pytest

from flows.overnight import overnight as overnight_flow
from flows.prepare import prepare as prepare_flow
from tasks.errors import ClientsFailed, CommandFailed, GbsError, SourceRefused, TransferInterrupted, Unreachable
from tasks.model.outcome import Outcome
from tests.flows.fake_site import FakeSite

prepare: Any = prepare_flow
overnight: Any = overnight_flow
FULL = SourceRefused("db1", "the snapshot of / filled up during the transfer")


@pytest.fixture
def asked(site: FakeSite) -> FakeSite:
    """A site that is to pull db1 from snapshots, and is prepared."""
    site.declare({}, {"db1": {"address": "db1.test", "paths": ["/", "/srv"], "snapshot": "auto"}})
    prepare(["db1"])
    return site


def work(site: FakeSite) -> list[str]:
    """What was done on db1 in stage 1 so far."""
    verbs = [verb for verb in site.of("db1") if verb != "connect"]
    return verbs[verbs.index("facts") + 1 :]


def manifest(site: FakeSite) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((site.store / "overnight/db1/manifest.json").read_text())
    return found


def test_client_that_asks_for_none_is_not_bothered(site: FakeSite) -> None:
    prepare(["db1"])
    overnight(["db1"])
    assert not {"make snapshots", "clear snapshots", "check"} & set(site.of("db1"))
    assert manifest(site)["sources"] == []


def test_files_are_pulled_from_snapshots_that_are_gone_before_the_night_is_published(asked: FakeSite) -> None:
    (result,) = overnight(["db1"])
    assert result.outcome is Outcome.OK
    assert work(asked) == ["clear snapshots", "make snapshots", "pull", "check", "clear snapshots"]
    assert asked.pulled == ["/snapshots/./", "/snapshots/./srv"]
    found = manifest(asked)
    assert found["paths"] == ["/", "/srv"]
    assert [(source["place"], source["kind"]) for source in found["sources"]] == [("/", "btrfs")]
    assert "/hidden/*" in found["excluded"]


def test_facts_are_collected_when_leftovers_are_gone(asked: FakeSite) -> None:
    verbs = asked.of("db1")
    assert verbs.index("clear snapshots") < verbs.index("facts")


def test_what_is_read_live_or_stays_behind_is_a_warning(asked: FakeSite) -> None:
    asked.snapshot_warnings, asked.snapshots_left = ("/srv was read live: no room",), ["a snapshot was left behind: x"]
    (result,) = overnight(["db1"])
    assert result.outcome is Outcome.WARNING
    assert set(result.reasons) == {*asked.snapshot_warnings, *asked.snapshots_left}
    assert manifest(asked)["warnings"] == ["/srv was read live: no room"]


def test_interrupted_pull_resumes_from_the_same_snapshots(asked: FakeSite) -> None:
    asked.fail("pull", "db1", TransferInterrupted("rsync of db1", 12, "cut"))
    assert overnight(["db1"])[0].outcome is Outcome.OK
    assert work(asked) == ["clear snapshots", "make snapshots", "pull", "pull", "check", "clear snapshots"]


@pytest.mark.parametrize(
    ("verb", "error", "said", "done"),
    [
        ("make snapshots", CommandFailed("mountinfo", 1, "none"), "mountinfo", []),
        ("pull", ZeroDivisionError("a bug"), "unexpected", ["pull"]),
        ("pull", CommandFailed("rsync of db1", 23, "I/O error"), "I/O error", ["pull", "check"]),
        ("check", FULL, "filled up", ["pull", "check"]),
    ],
    ids=["not made", "unexpected", "pull failed", "filled up"],
)
def test_night_that_fails_takes_its_snapshots_away_and_keeps_the_last_copy(
    asked: FakeSite, verb: str, error: Exception, said: str, done: list[str]
) -> None:
    overnight(["db1"])
    before, count = manifest(asked), len(work(asked))
    asked.fail(verb, "db1", error)
    with pytest.raises(ClientsFailed, match=said):
        overnight(["db1"])
    assert work(asked)[count:] == ["clear snapshots", "make snapshots", *done, "clear snapshots"]
    assert manifest(asked) == before


def test_read_errors_of_a_snapshot_that_filled_up_are_told_as_that(asked: FakeSite) -> None:
    asked.fail("pull", "db1", CommandFailed("rsync of db1", 23, "Input/output error (5)"))
    asked.fail("check", "db1", FULL)
    with pytest.raises(ClientsFailed, match="the snapshot of / filled up"):
        overnight(["db1"])


def test_snapshots_that_cannot_be_removed_now_are_a_warning(asked: FakeSite) -> None:
    errors: list[GbsError] = [Unreachable("db1", "cable") for _ in range(6)]
    asked.fail("clear snapshots", "db1", *errors)
    (result,) = overnight(["db1"])
    assert result.outcome is Outcome.WARNING
    assert result.reasons == ("its snapshots could not be removed: db1 is unreachable: cable",) * 2
