"""The stages of a night: their order, whose failure stops what, and how a run over clients ends."""

import json
import re
import threading
from datetime import datetime
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort

from flows.nightly import nightly as nightly_flow
from flows.overnight import overnight as overnight_flow
from flows.permanent import permanent as permanent_flow
from flows.prepare import prepare as prepare_flow
from tasks import nights
from tasks.drivers import restore_points
from tasks.drivers.permanent import PermanentPlace
from tasks.drivers.rsync import Transferred
from tasks.drivers.snaplive_settle import DiskOutcome
from tasks.drivers.store import write_model
from tasks.errors import (
    ClientsFailed,
    CommandFailed,
    DumpFailed,
    GbsError,
    StoreSilent,
    TransferInterrupted,
    Unreachable,
)
from tasks.model.facts import Facts
from tasks.model.manifest import NightManifest
from tasks.model.outcome import Outcome, StageResult, exit_code
from tasks.model.ssh_target import SshTarget
from tests.flows.fake_site import UUID, FakeSite

# A run hands its caller the data of the state that it returns.
nightly: Any = nightly_flow
prepare: Any = prepare_flow
overnight: Any = overnight_flow
permanent: Any = permanent_flow


def outcomes(results: list[StageResult]) -> dict[str, str]:
    return {f"{result.client} {result.stage}": result.outcome.value for result in results}


def report_artifact(key: str) -> list[dict[str, str]]:
    chosen = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    with get_client(sync_client=True) as client:
        newest = client.read_artifacts(artifact_filter=chosen, sort=ArtifactSort.CREATED_DESC, limit=1)[0]
    rows: list[dict[str, str]] = json.loads(str(newest.data))
    return rows


def test_nightly_all_clients_stages_in_order_then_image(site: FakeSite) -> None:
    results = nightly()
    assert outcomes(results) == {
        **{
            f"{name} {stage}": "OK"
            for name in ("kvm1", "web1", "db1")
            for stage in ("prepare", "overnight", "permanent")
        },
        "web1 image": "OK",
        "web1 replicate": "OK",
        "GBS server recovery set": "OK",
        "GBS server replicate": "OK",
    }
    work = [verb for verb in site.of("db1") if verb != "connect"]
    assert (work[:2], set(work[2:4])) == (["facts", "list databases"], {"accounts", "dump"})
    assert work[4:] == ["pull", "sync", "rotate"]
    # The VM is found in its host's backup data of this very night, and its files are safe before its image is taken.
    assert site.calls.index(("open window", "web1")) > max(
        site.calls.index((verb, name)) for verb in ("pull", "rotate") for name in ("kvm1", "web1")
    )
    assert site.of("web1")[-2:] == ["open window", "close window"]
    assert (site.permanent / "web1/daily.0/data/srv/page").read_text() == "one\n"
    assert {row["outcome"] for row in report_artifact("nightly-report")} == {"OK"}


def test_nightly_again_nothing_new_image_serves(site: FakeSite) -> None:
    nightly()
    results = nightly()
    assert outcomes(results)["web1 image"] == "SKIPPED"
    assert site.count("open window", "web1") == 1
    assert exit_code(results) == 0


def test_nightly_one_client_down_others_done_run_failed_with_table(site: FakeSite) -> None:
    site.fail("facts", "web1", *(Unreachable("web1", "no route to host") for _ in range(9)))
    state = nightly(return_state=True)
    assert state.is_failed()
    with pytest.raises(
        ClientsFailed, match=r"1 of 4 systems failed: web1 prepare: web1 is unreachable: no route"
    ) as it:
        state.result()
    assert "1 of 4 systems failed: web1 prepare" in str(state.message)
    found = outcomes(it.value.args[3])
    assert found["web1 prepare"] == "FAILED"
    assert found["web1 overnight"] == found["web1 permanent"] == "SKIPPED"
    assert found["db1 permanent"] == found["kvm1 permanent"] == "OK"
    assert ("pull", "web1") not in site.calls
    table = report_artifact("nightly-report")
    assert (table[0]["client"], table[0]["outcome"]) == ("web1", "FAILED")
    assert "no route to host" in table[0]["reason"]
    assert len(site.latest_report("nightly")["results"]) == len(table)


def test_nightly_unexpected_error_of_one_client_stays_its_own(site: FakeSite) -> None:
    site.fail("pull", "db1", ZeroDivisionError("a bug"))
    with pytest.raises(
        ClientsFailed, match="1 of 4 systems failed: db1 overnight: unexpected ZeroDivisionError: a bug"
    ):
        nightly()
    assert site.count("rotate", "web1") == site.count("rotate", "kvm1") == 1
    assert ("sync", "db1") not in site.calls


def test_nightly_client_that_crawls_delays_neither_others_nor_their_images(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    imaged = threading.Event()

    def close(*words: Any, **options: Any) -> list[DiskOutcome]:
        imaged.set()
        return site.close_window(*words, **options)

    def pull(target: SshTarget, *words: Any, **options: Any) -> Transferred:
        assert target.name != "db1" or imaged.wait(60), "the image of web1 waits for db1"
        return site.pull(target, *words, **options)

    monkeypatch.setattr("tasks.drivers.live_image.close_window", close)
    monkeypatch.setattr("tasks.drivers.rsync.pull", pull)
    assert set(outcomes(nightly()).values()) == {"OK"}


def test_nightly_postgresql_down_partial_and_the_rest_goes_on(site: FakeSite) -> None:
    site.fail("list databases", "db1", DumpFailed("postgresql on db1", "connection refused"))
    results = nightly(["db1"])
    assert outcomes(results) == {"db1 prepare": "PARTIAL", "db1 overnight": "PARTIAL", "db1 permanent": "OK"}
    assert exit_code(results) == 3
    assert any("connection refused" in reason for reason in results[0].reasons)
    # Its data files are pulled then: no dump covers them.
    manifest = json.loads((site.store / "overnight/db1/manifest.json").read_text())
    assert not any("postgresql" in pattern for pattern in manifest["excluded"])
    assert manifest["outcome"] == "PARTIAL"


def test_prepare_one_database_fails_others_are_dumped(site: FakeSite) -> None:
    site.fail("dump", "db1", DumpFailed("postgresql database 'shop'", "disk full"))
    results = prepare(["db1"])
    assert results[0].outcome is Outcome.PARTIAL
    prepared = json.loads((site.store / "prepared/db1.json").read_text())
    assert [dump["kind"] for dump in prepared["dumps"]] == ["accounts"]
    assert "disk full" in prepared["failures"][0]


def declare_db1(site: FakeSite, **more: object) -> None:
    clients = site.clients()
    clients["db1"] |= more
    site.declare({"kvm1": {"address": "kvm1.test", "paths": ["/etc"]}}, clients)


def test_prepare_server_that_nobody_declared_is_a_warning(site: FakeSite) -> None:
    site.running_engines = {"postgresql", "redis"}
    (result,) = prepare(["db1"])
    assert (result.outcome, result.reasons) == (
        Outcome.WARNING,
        ("it runs redis, which the inventory does not declare: nothing dumps it",),
    )
    assert [result.outcome for result in overnight(["db1"])] == [Outcome.OK]


def test_prepare_database_that_nobody_declared_is_a_warning(site: FakeSite) -> None:
    declare_db1(site, databases=[{"engine": "postgresql", "names": ["other"]}])
    (result,) = prepare(["db1"])
    assert (result.outcome, result.reasons) == (
        Outcome.WARNING,
        ("postgresql has a database 'shop' that is not declared",),
    )
    overnight(["db1"])
    manifest = json.loads((site.store / "overnight/db1/manifest.json").read_text())
    assert not any("postgresql" in pattern for pattern in manifest["excluded"]), "what no dump holds must be pulled"


def test_prepare_dump_that_shrank_is_a_warning(site: FakeSite) -> None:
    prepare(["db1"])
    before = json.loads((site.store / "prepared/db1.json").read_text())
    for dump in before["dumps"]:
        dump["size_bytes"] *= 3
    (site.store / "prepared/db1.json").write_text(json.dumps(before))
    (result,) = prepare(["db1"])
    assert result.outcome is Outcome.WARNING
    assert [reason.split(":")[0] for reason in result.reasons] == ["postgresql ", "postgresql shop"]


def test_facts_that_could_not_be_read_are_a_warning(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def collect(shell: Any, now: datetime) -> Facts:
        return site.facts(shell, now).model_copy(update={"unread": ("interfaces: cannot be read",)})

    monkeypatch.setattr("tasks.preparation.facts.collect", collect)
    (result,) = prepare(["db1"])
    assert (result.outcome, result.reasons) == (Outcome.WARNING, ("interfaces: cannot be read",))


def test_night_without_a_file_system_that_was_there_is_refused(site: FakeSite) -> None:
    nightly(["db1"])
    before = (site.store / "overnight/db1/manifest.json").read_text()
    facts = json.loads((site.store / "overnight/db1/facts.json").read_text())
    srv = {**facts["file_systems"][0], "mountpoint": "/srv", "uuid": None}
    facts["file_systems"].append(srv)
    (site.store / "overnight/db1/facts.json").write_text(json.dumps(facts))
    manifest = NightManifest.model_validate_json(before).model_copy(update={"paths": ("/", "/srv")})
    write_model(site.store / "overnight/db1/manifest.json", manifest)
    with pytest.raises(ClientsFailed, match=r"/srv \(/dev/vda\) was mounted last night and is not now: mount it"):
        nightly(["db1"])
    assert site.count("pull", "db1") == 1


def test_night_that_rewrote_nearly_all_is_published_with_a_warning_and_held(
    site: FakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    site.files["db1"] |= {f"/srv/{number}": b"as it was" for number in range(40)}
    nightly(["db1"])
    site.files["db1"] |= {f"/srv/{number}": b"ENCRYPTED" for number in range(40)}
    with pytest.raises(ClientsFailed, match=r"db1 permanent: night .* is held and nothing rotated: 40 of 4\d ") as it:
        nightly(["db1"])
    (night,) = [row for row in it.value.args[3] if row.stage == "overnight"]
    assert night.outcome is Outcome.WARNING
    assert re.match(r"\d+ files were written anew since last night, which had \d+: ", night.reasons[0])
    (held,) = (site.permanent / "db1").glob(".held-*")
    assert (held / "data/srv/7").read_text() == "ENCRYPTED"
    assert (site.permanent / "db1/daily.0/data/srv/7").read_text() == "as it was"
    assert not (site.permanent / "db1/daily.1").exists()
    assert site.count("rotate", "db1") == 1
    assert nights.choose_night.fn("db1", "latest").folder == site.store / "overnight/db1"
    assert "is the overnight copy what you want?" in caplog.text


@pytest.mark.parametrize(("brake", "outcome"), [("warn", Outcome.WARNING), ("off", Outcome.OK)])
def test_night_that_is_not_like_the_others_is_kept_where_the_policy_says_so(
    site: FakeSite, brake: str, outcome: Outcome
) -> None:
    site.policies = {"default": {"brake": brake}}
    declare_db1(site)
    for content in (b"as it was", b"ENCRYPTED"):
        site.files["db1"] |= {f"/srv/{number}": content for number in range(40)}
        (*_, night) = nightly(["db1"])
    assert (night.stage, night.outcome) == ("permanent", outcome)
    assert [reason[:14] for reason in night.reasons] == (["it is not like"] if brake == "warn" else [])
    assert (site.permanent / "db1/daily.0/data/srv/7").read_text() == "ENCRYPTED"


def test_file_system_made_anew_in_its_place_is_a_warning_and_changes_no_flavour(site: FakeSite) -> None:
    nightly(["db1"])
    path = site.store / "overnight/db1/facts.json"
    facts = json.loads(path.read_text())
    facts["file_systems"][0]["uuid"] = "another\nline"
    path.write_text(json.dumps(facts))
    flavour = json.loads((site.store / "overnight/db1/manifest.json").read_text())["flavour"]
    (result,) = overnight(["db1"])
    assert result.outcome is Outcome.WARNING
    assert result.reasons == ("UUID of the file system on / changed from another\\nline to u",)
    assert json.loads((site.store / "overnight/db1/manifest.json").read_text())["flavour"] == flavour


def test_hooks_surround_their_stage_whatever_happens_in_it(site: FakeSite) -> None:
    stages = ("prepare", "overnight")
    hooks = [{"stage": stage, "before": ["hook", f"{stage}-on"], "after": ["hook", f"{stage}-off"]} for stage in stages]
    declare_db1(site, hooks=hooks)
    site.fail("pull", "db1", CommandFailed("rsync of db1", 1, "syntax"))
    with pytest.raises(ClientsFailed, match="syntax"):
        nightly(["db1"])
    work = [verb for verb in site.of("db1") if verb != "connect"]
    assert work[:2] == ["hook prepare-on", "facts"]
    assert work[-4:] == ["hook prepare-off", "hook overnight-on", "pull", "hook overnight-off"]


def test_hook_that_fails_before_ends_the_stage_and_one_after_makes_it_partial(site: FakeSite) -> None:
    declare_db1(site, hooks=[{"stage": "prepare", "before": ["hook", "on"], "after": ["hook", "off"]}])
    failed = CommandFailed("hook", 1, "no such application")
    site.fail("hook on", "db1", failed)
    with pytest.raises(ClientsFailed, match="no such application"):
        prepare(["db1"])
    assert [verb for verb in site.of("db1") if verb != "connect"] == ["hook on", "hook off"]
    site.fail("hook off", "db1", failed)
    (result,) = prepare(["db1"])
    assert result.outcome is Outcome.PARTIAL
    assert "no such application" in result.reasons[0]


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (Unreachable("db1", "no answer"), 3),
        (TransferInterrupted("rsync of db1", 12, "reset"), 3),
        (CommandFailed("rsync of db1", 1, "syntax"), 1),
        (ValueError("not ours"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_overnight_error_of_pull_retried_only_when_transient(site: FakeSite, error: Exception, tries: int) -> None:
    prepare(["db1"])
    site.fail("pull", "db1", *[error] * 9)
    with pytest.raises(ClientsFailed):
        overnight(["db1"])
    assert site.count("pull", "db1") == tries


def test_overnight_pull_fails_old_night_is_kept(site: FakeSite) -> None:
    nightly(["kvm1", "web1"])
    before = (site.store / "overnight/web1/manifest.json").read_bytes()
    site.files["web1"]["/srv/page"] = b"two\n"
    site.fail("pull", "web1", *(TransferInterrupted("rsync of web1", 30, "timeout") for _ in range(3)))
    with pytest.raises(ClientsFailed, match="was interrupted"):
        overnight(["web1"])
    assert (site.store / "overnight/web1/manifest.json").read_bytes() == before
    assert (site.store / "overnight/web1/data/srv/page").read_text() == "one\n"


def test_overnight_pull_breaks_once_second_try_is_published(site: FakeSite) -> None:
    prepare(["db1"])
    site.fail("pull", "db1", TransferInterrupted("rsync of db1", 30, "timeout"))
    assert overnight(["db1"])[0].outcome is Outcome.OK
    assert (site.store / "overnight/db1/data/etc/hostname").read_text() == "db1\n"
    assert list((site.store / "overnight/.partial").iterdir()) == []


def test_overnight_client_lost_most_of_its_files_is_refused(site: FakeSite) -> None:
    site.files["db1"]["/srv/big"] = bytes(10_000)
    prepare(["db1"])
    overnight(["db1"])
    del site.files["db1"]["/srv/big"]
    with pytest.raises(ClientsFailed, match="it shrank from"):
        overnight(["db1"])
    assert (site.store / "overnight/db1/data/srv/big").stat().st_size == 10_000


def test_overnight_client_lost_most_of_its_small_files_is_refused(site: FakeSite) -> None:
    site.files["db1"].update({f"/srv/small-{number}": b"x" for number in range(20)} | {"/srv/big": bytes(10_000)})
    prepare(["db1"])
    overnight(["db1"])
    for number in range(20):
        del site.files["db1"][f"/srv/small-{number}"]
    with pytest.raises(ClientsFailed, match=r"it shrank from \d+ to \d+ files"):
        overnight(["db1"])
    assert (site.store / "overnight/db1/data/srv/small-7").exists()


def test_overnight_never_prepared_says_which_command(site: FakeSite) -> None:
    with pytest.raises(ClientsFailed, match="run: gbs run prepare"):
        overnight(["db1"])
    assert ("pull", "db1") not in site.calls


@pytest.mark.parametrize("marker", [None, "another-store"])
def test_permanent_wrong_marker_nothing_written(site: FakeSite, marker: str | None) -> None:
    prepare(["db1"])
    overnight(["db1"])
    (site.permanent / ".gbs-store").unlink()
    if marker:
        (site.permanent / ".gbs-store").write_text(marker)
    with pytest.raises(ClientsFailed, match=r"^1 of 1 systems .* not the right one: the marker .* nothing was written"):
        permanent(["db1"])
    assert [path.name for path in site.permanent.iterdir()] == ([".gbs-store"] if marker else [])
    assert not {"sync", "rotate"} & set(site.of("db1"))


def test_permanent_same_night_twice_skipped_and_not_rotated(site: FakeSite) -> None:
    nightly(["db1"])
    results = permanent(["db1"])
    assert results[0].outcome is Outcome.SKIPPED
    assert "is in the permanent store already" in results[0].reasons[0]
    assert sorted(path.name for path in (site.permanent / "db1").glob("daily.*")) == ["daily.0"]


def test_nightly_clients_work_side_by_side(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=30)
    real = site.facts

    def wait_for_the_other(shell, now):
        both.wait()
        return real(shell, now)

    monkeypatch.setattr("tasks.preparation.facts.collect", wait_for_the_other)
    assert exit_code(prepare(["web1", "db1"])) == 0


@pytest.mark.parametrize("flow", [nightly, prepare, overnight, permanent])
def test_stage_unknown_client_refused_before_anything(site: FakeSite, flow) -> None:
    with pytest.raises(GbsError, match="no client named 'nosuch': known are db1, kvm1, web1") as it:
        flow(["db1", "nosuch"])
    assert it.value.exit_code == 2
    assert site.calls == []
    assert not (site.store / "reports").exists()


def test_nightly_client_locked_fails_that_client_only(site: FakeSite) -> None:
    from tasks import places

    prepare(["db1", "kvm1"])
    with places.locked("client", "db1"), pytest.raises(ClientsFailed, match="client db1 is locked by another run: pid"):
        overnight(["db1", "kvm1"])
    assert ("pull", "db1") not in site.calls
    assert site.count("pull", "kvm1") == 1
    assert UUID not in str(site.calls)


def test_what_was_given_up_is_removed_from_clients_side_by_side(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=60)
    monkeypatch.setattr(restore_points, "tidy", lambda *_: both.wait())
    assert outcomes(nightly(["kvm1", "db1"])).keys() == {
        f"{name} {stage}" for name in ("kvm1", "db1") for stage in ("prepare", "overnight", "permanent")
    }
    assert not both.broken


def test_a_store_that_falls_silent_while_the_trash_is_emptied_is_told_once(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(place: PermanentPlace, _: object) -> None:
        raise StoreSilent(str(place.path), "no answer within 60 s")

    monkeypatch.setattr(restore_points, "tidy", silent)
    (row,) = [row for row in nightly(["kvm1", "db1"]) if row.client == "all clients"]
    assert row.outcome is Outcome.WARNING
    assert len(row.reasons) == 1
