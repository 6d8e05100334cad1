"""The commands: exit codes, one clear line per error, JSON that parses."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.cli import kvm, terminal
from flows.cli.main import gbs
from tasks import places
from tasks.drivers import lock
from tasks.drivers.store import Store
from tasks.errors import DumpFailed, Unreachable
from tests.flows.fake_site import UUID, FakeSite

DEAD = "http://127.0.0.1:9/api"


class Ended(NamedTuple):
    """How a command ended."""

    code: Any
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error:")]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run a command as its console script does, in this process."""
    monkeypatch.setattr(terminal, "show_progress", lambda: None)
    monkeypatch.setattr("flows.cli.terminal.signal.signal", lambda *_: None)

    def command(*words: str, script: click.Command = gbs) -> Ended:
        monkeypatch.setattr(sys, "argv", ["gbs", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            terminal.run(script)
        seen = capsys.readouterr()
        return Ended(ended.value.code, seen.out, seen.err)

    return command


def test_run_all_good_exit_0_and_json(site: FakeSite, run) -> None:
    ended = run("run", "nightly", "--client", "db1", "--json")
    assert ended.code == 0
    assert [(row["stage"], row["outcome"]) for row in json.loads(ended.out)] == [
        *(("prepare", "OK"), ("overnight", "OK"), ("permanent", "OK"))
    ]
    status = run("status", "--json")
    rows = {row["client"]: row for row in json.loads(status.out)}
    assert status.code == 3, "the others were never backed up"
    assert rows["db1"]["outcome"] == "OK"
    assert rows["db1"]["points"] == 1
    assert rows["web1"]["reason"] == "it was never backed up: gbs run nightly"
    points = json.loads(run("list", "points", "db1", "--json").out)
    assert [row["point"] for row in points] == ["overnight", "daily.0"]
    assert json.loads(run("list", "images", "--json").out) == []


def test_restore_points_are_explained_simulated_and_pinned(site: FakeSite, run) -> None:
    for _ in range(3):
        assert run("run", "nightly", "--client", "db1").code == 0
        time.sleep(1)  # a night's id is of the second
    before = {path: path.lstat().st_ctime_ns for path in (site.permanent, *site.permanent.rglob("*"))}
    rows = json.loads(run("retention", "explain", "db1", "--json").out)
    assert run("retention", "images").code == 0
    assert {path: path.lstat().st_ctime_ns for path in (site.permanent, *site.permanent.rglob("*"))} == before
    assert [(row["point"], row["with the next night"]) for row in rows] == [
        (f"daily.{number}", f"becomes daily.{number + 1}: a newer one takes its place") for number in range(3)
    ]
    kept = json.loads(run("retention", "simulate", "--nights", "400", "--json").out)
    assert len(kept) == 21
    assert kept[-1]["point"] == "monthly.2"
    pinned = run("pin", "db1", "daily.2", "--until", "2999-12-31", "--reason", "before the upgrade")
    assert pinned.code == 0
    assert f"night {rows[2]['night']} of db1 is kept until 2999-12-31" in pinned.out
    pins = json.loads((site.permanent / "db1/.pins.json").read_text())["pins"]
    assert pins == [{"night": rows[2]["night"], "until": "2999-12-31", "reason": "before the upgrade"}]
    declared = yaml.safe_load(site.inventory.read_text())
    declared["policies"] = {"default": {"daily": 2, "weekly": 0, "monthly": 0}}
    site.inventory.write_text(yaml.safe_dump(declared))
    assert run("run", "nightly", "--client", "db1").code == 0
    held = json.loads(run("retention", "explain", "db1", "--json").out)[-1]
    assert held["point"] == f"kept.{rows[2]['night']}"
    assert held["with the next night"] == "stays, pinned until 2999-12-31: before the upgrade"
    assert run("unpin", "db1", rows[2]["night"]).code == 0
    assert run("pin", "db1", "daily.1", "--until", "2020-01-01", "--reason", "x").errors == [
        "error: 2020-01-01 is over (--until): give a day to come"
    ]
    assert run("pin", "db1", "daily.7", "--until", "2999-12-31", "--reason", "x").code == 10
    assert run("retention", "explain", "none").code == 2


def test_held_night_is_shown_then_accepted_or_rejected(site: FakeSite, run) -> None:
    root = site.permanent / "db1"
    site.files["db1"] |= {f"/srv/{number}": b"plain text, and some more of it " * 30 for number in range(40)}
    assert run("run", "nightly", "--client", "db1").code == 0
    assert run("reject", "db1", "--reason", "x").out == "db1, done: nothing, no such night is held\n"
    good = outside(root / "daily.0")
    for number in range(40):
        content = site.files["db1"].pop(f"/srv/{number}")
        site.files["db1"][f"/srv/{number}.locked"] = random.Random(number).randbytes(len(content))
    held = []
    for _ in range(2):
        time.sleep(1)  # a night's id is of the second
        ended = run("run", "nightly", "--client", "db1")
        assert ended.code == 1
        (error,) = ended.errors
        assert re.search(
            r"40 of \d+ files were plain and look encrypted now \(.* %, 5 % is the policy's limit\)", error
        )
        found = re.search(r"night (\w+) is held .* with night (\w+), which is pinned; .*then: (.*)$", error)
        assert found
        night, against, command = found.groups()
        assert command == f"gbs accept|reject db1 {night} --reason …"
        held.append(night)
    assert against == json.loads((root / "daily.0/manifest.json").read_text())["id"]
    assert outside(root / "daily.0") == good
    rows = json.loads(run("list", "held", "db1", "--json").out)
    assert [(row["client"], row["night"], row["against"]) for row in rows] == [("db1", one, against) for one in held]
    assert "40 scrambled" in rows[0]["changes"]
    (status,) = [row for row in json.loads(run("status", "--json").out) if row["client"] == "db1"]
    assert (status["held"], status["points"], status["outcome"]) == (" ".join(held), 1, "FAILED")
    (explained,) = json.loads(run("retention", "explain", "db1", "--json").out)
    assert (explained["point"], explained["night"]) == ("daily.0", against)
    assert run("accept", "db1").code == 2, "a reason must be given"
    with places.locked("client", "db1"):
        assert run("accept", "db1", "--reason", "x").code == 11
    assert run("reject", "db1", "20200101T000000Z", "--reason", "x").code == 2

    rejected = json.loads(run("reject", "db1", held[0], "--reason", "an attack", "--json").out)
    assert [(row["what"], row["becomes"][:5]) for row in rejected] == [
        (f"night {held[0]}", "trash"), (f"night {against}", "pinne"),
    ]  # fmt: skip
    assert "daily.0" in run("accept", "db1", "--reason", "a new release", "--dry-run").out
    assert outside(root / "daily.0") == good
    accepted = json.loads(run("accept", "db1", "--reason", "a new release", "--json").out)
    assert [row["becomes"] for row in accepted] == ["daily.1", "daily.0"]
    assert outside(root / "daily.1") == good
    assert run("list", "held", "--json").out == "[]\n"
    time.sleep(1)
    results = {
        row["stage"]: row["outcome"] for row in json.loads(run("run", "nightly", "--client", "db1", "--json").out)
    }
    assert results["permanent"] == "OK"


def outside(point: Path) -> str:
    """The sha256 of all of a point's files, by sha256sum, once it has proven them."""
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "../SHA256SUMS"], cwd=point / "data", check=True)
    listed = "find . -type f | sort | xargs sha256sum"
    return subprocess.run(["sh", "-c", listed], cwd=point, check=True, capture_output=True, text=True).stdout


def test_restore_points_are_verified_and_healed(site: FakeSite, run) -> None:
    assert run("verify", "points", "db1", "--json").code == 0
    assert run("run", "nightly", "--client", "db1").code == 0
    hostname = site.permanent / "db1/daily.0/data/etc/hostname"
    hostname.write_bytes(b"db2\n")
    ended = run("verify", "points", "db1", "--json")
    assert ended.code == 3
    (row,) = json.loads(ended.out)
    assert (row["outcome"], row["reason"]) == ("WARNING", "1 damaged files were healed by good copies, see the log")
    assert hostname.read_bytes() == b"db1\n"
    for place in (site.permanent / "db1/daily.0", site.store / "overnight/db1"):
        (place / "data/etc/hostname").write_bytes(b"db2\n")
    ended = run("verify", "points", "db1")
    assert ended.code == 1
    assert re.search(r"db1/daily.0: /etc/hostname is damaged: expected what its listing says", ended.err)
    assert run("verify", "points", "db1", "--sample", "50").code in (0, 1)


def test_status_says_that_the_permanent_store_is_silent_and_since_when(
    site: FakeSite, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO that nobody writes instead of an NFS server that is gone; test_nfs has a real one."""
    run("run", "nightly", "--client", "db1")
    for name in (".gbs-store", "db1/daily.0/manifest.json"):
        (site.permanent / name).unlink()
        os.mkfifo(site.permanent / name)
    monkeypatch.setattr("tasks.drivers.permanent.LOOK_DEADLINE_S", 0.5)
    status = run("status")
    assert status.code == 3
    assert re.search(r"permanent does not answer: no answer within 0.5 s; .*; it last did at 20\d\d-.* UTC", status.err)
    (row,) = [line for line in status.out.splitlines() if line.startswith("db1 ")]
    assert " OK " in row
    assert " ? " in row
    listed = run("list", "points", "db1")
    assert (listed.code, len(listed.errors)) == (75, 1)


def test_run_postgresql_down_exit_3(site: FakeSite, run) -> None:
    site.fail("accounts", "db1", DumpFailed("postgresql accounts on db1", "connection refused"))
    ended = run("run", "nightly", "--client", "db1")
    assert ended.code == 3
    assert "PARTIAL" in ended.out
    assert "connection refused" in " ".join(ended.out.split())


def test_run_client_down_exit_1_table_and_one_line(site: FakeSite, run) -> None:
    site.fail("facts", "db1", *(Unreachable("db1", "no answer") for _ in range(3)))
    ended = run("run", "nightly", "--client", "db1", "--json")
    assert ended.code == 1
    assert json.loads(ended.out)[0]["outcome"] == "FAILED"
    assert ended.errors == ["error: 1 of 1 systems failed: db1 prepare: db1 is unreachable: no answer"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "nightly", "--client", "nosuch"), "no client named 'nosuch': known are db1, kvm1, web1"),
        (("recover", "vm", "nosuch"), "no VM named 'nosuch': known are web1"),
        (("list", "points", "nosuch"), "no client named 'nosuch': known are db1, kvm1, web1"),
    ],
)
def test_command_unknown_name_exit_2_nothing_started(site: FakeSite, run, words: tuple[str, ...], said: str) -> None:
    ended = run(*words)
    assert (ended.code, ended.errors) == (2, [f"error: {said}"])
    assert site.calls == []


def test_command_usage_error_exit_2(site: FakeSite, run) -> None:
    assert run("run", "nightly", "--nosuch").code == 2
    assert run("nosuch").code == 2
    ended = run(script=kvm.kvmsnap_purge_command)
    assert ended.code == 2
    assert "name a VM, or say --all" in ended.err


def test_command_inventory_wrong_exit_2_all_problems(site: FakeSite, run) -> None:
    site.inventory.write_text("store: {path: relative}\nclient: {}\n")
    for words in (("inventory", "validate"), ("run", "nightly"), ("apply",), ("deploy",)):
        ended = run(*words)
        assert ended.code == 2, words
        assert "line 1: store.path" in ended.err
        assert "line 2: client" in ended.err


def test_kvmimg_get_vm_locked_exit_11(site: FakeSite, run) -> None:
    assert run("run", "prepare", "--client", "kvm1").code == 0
    assert run("run", "overnight", "--client", "kvm1").code == 0
    with places.locked("vm", UUID):
        ended = run("web1", script=kvm.kvmimg_get_command)
    assert ended.code == 11
    assert ended.errors[0].startswith(f"error: vm {UUID} is locked by another run: pid {os.getpid()} since")
    image = json.loads(run("web1", "--json", script=kvm.kvmimg_get_command).out)
    assert (image["vm"], image["method"]) == ("web1", "snaplive")


def test_recover_vm_no_backup_exit_10(site: FakeSite, run) -> None:
    ended = run("recover", "vm", "web1")
    assert ended.code == 10
    assert len(ended.errors) == 1
    assert ended.errors[0].startswith("error: nothing to recover VM web1 from: ")


def test_reconcile_nothing_left_exit_0_json(site: FakeSite, run) -> None:
    ended = run("reconcile", "--json")
    assert (ended.code, json.loads(ended.out)) == (0, [])
    assert run("reconcile").out.strip() == "reconciled: nothing was left open"


def test_cancelled_by_interrupt_exit_130(site: FakeSite, run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.preparation.facts.collect", interrupted)
    ended = run("run", "prepare", "--client", "db1")
    assert ended.code == 130
    assert ended.err.strip().splitlines()[-1] == "cancelled"


def test_apply_again_unchanged_then_lists_what_changed(site: FakeSite, run) -> None:
    clients = site.clients()
    site.declare({"kvm9": {"address": "kvm9.test"}}, clients)

    def applied(*words: str) -> dict[str, tuple[str, str]]:
        ended = run("apply", "--json", *words)
        assert ended.code == 0
        return {row["block"]: (row["action"], row["fields"]) for row in json.loads(ended.out)}

    assert applied("--dry-run")["kvm-host-kvm9"] == ("created", "")
    first = applied()
    assert first["kvm-host-kvm9"] == ("created", "")
    assert first["store"] == ("unchanged", "")
    assert {action for action, _ in applied().values()} == {"unchanged"}
    site.declare({"kvm9": {"address": "10.0.0.9", "port": 2222}}, clients)
    assert applied("--dry-run")["kvm-host-kvm9"] == ("changed", "address port")
    assert applied()["kvm-host-kvm9"] == ("changed", "address port")
    assert {action for action, _ in applied().values()} == {"unchanged"}
    assert places.kvm_host("kvm9")[1].port == 2222, "a run that follows sees the new place"


def test_flow_parameters_and_blocks_hold_no_secret(site: FakeSite, run) -> None:
    secret = "-----BEGIN OPENSSH PRIVATE KEY-----"
    (site.root / "key").write_text(secret)
    assert run("apply").code == 0
    run("run", "nightly", "--client", "db1")
    with get_client(sync_client=True) as client:
        newest = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=5)
        blocks = client.read_block_documents()
    assert {"clients": ["db1"]} in [flow_run.parameters for flow_run in newest]
    texts = [str(flow_run.parameters) for flow_run in newest] + [str(block.data) for block in blocks]
    assert any(str(site.root / "key") in text for text in texts), "the block names the key's file"
    assert not [text for text in texts if secret in text]


def test_run_server_down_one_line(site: FakeSite) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "from flows.cli.main import main; main()", "run", "prepare"],
        env={**os.environ, "PREFECT_API_URL": DEAD, "GBS_INVENTORY": str(site.inventory)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 75
    assert ended.stderr.startswith(f"error: the Prefect server {DEAD} is unreachable: ")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["apply", "deploy"])
def test_command_server_down_one_line(site: FakeSite, run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("PREFECT_API_URL", DEAD)
    with temporary_settings({PREFECT_API_URL: DEAD}):
        ended = run(command)
    assert ended.code == 75
    assert len(ended.errors) == 1
    assert ended.errors[0].startswith(f"error: the Prefect server {DEAD} is unreachable: ")


def test_deploy_no_server_or_no_file_exit_2(site: FakeSite, run) -> None:
    assert run("deploy", "--prefect-file", "/nonexistent/prefect.yaml").errors == [
        "error: no prefect.yaml (/nonexistent/prefect.yaml): name it with --prefect-file"
    ]
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        ended = run("deploy")
    assert ended.code == 2
    assert ended.errors[0].startswith("error: no Prefect server is named (PREFECT_API_URL): ")


def test_replicas_of_images_are_explained_and_pinned(site: FakeSite, run) -> None:
    site.policies = {"default": {"image_replicas": 1}}
    site.create()
    for client in ("kvm1", "web1"):
        assert run("run", "nightly", "--client", client).code == 0
    (first,) = (path.name for path in site.permanent.glob("_images/kvm1/web1/[!.]*"))
    time.sleep(1)  # an image's id is of the second
    assert run("web1", script=kvm.kvmimg_get_command).code == 0

    def explained(*words: str) -> list[str]:
        return [row["with the next replication"] for row in json.loads(run(*words, "--json").out)]

    kept = "the newest 1 that are sound are kept"
    assert explained("run", "replicate", "--dry-run") == [f"is made: {kept}", "goes: 1 newer ones are sound"]
    assert run("image", "pin", "web1", first, "--until", "2999-12-31", "--reason", "audit").code == 0
    pinned = [f"is made: {kept}", "stays: pinned until 2999-12-31: audit"]
    assert explained("retention", "images", "web1") == pinned
    assert run("run", "replicate").code == 0
    assert len(list(site.permanent.glob("_images/kvm1/web1/[!.]*"))) == 2
    assert run("image", "unpin", "web1", first).code == 0
    assert explained("retention", "images") == [f"stays: {kept}", "goes: 1 newer ones are sound"]
    assert run("image", "pin", "web1", "20200101T000000Z", "--until", "2999-12-31", "--reason", "x").code == 10
    assert run("retention", "images", "none").code == 2


def test_pins_are_changed_by_one_at_a_time_and_not_while_points_rotate(site: FakeSite, run, monkeypatch) -> None:
    """Of two that were set at once one was lost; one set beside a rotation could come too late and look as if not."""
    assert run("run", "nightly").code == 0
    pin = ("daily.0", "--until", "2999-12-31", "--reason", "an audit")
    monkeypatch.setattr(lock, "TURN_S", 0.0)
    with lock.turn(Store(site.store).lock("pins", "db1"), "the pins of client db1"):
        for words in (("pin", "db1", *pin), ("unpin", "db1", "daily.0"), ("reject", "db1", "--reason", "x")):
            ended = run(*words)
            assert ended.code == 11
            assert ended.errors[0].startswith("error: the pins of client db1 is locked by another run: pid ")
        time.sleep(1)  # a night's id is of the second
        ended = run("run", "nightly", "--client", "db1")
        assert ended.code == 1
        assert "the pins of client db1 is locked by another run" in ended.err
        assert not (site.permanent / "db1/daily.1").exists()
    assert run("pin", "db1", *pin).code == 0
    assert run("run", "permanent", "--client", "db1").code == 0
    with lock.turn(Store(site.store).lock("image-pins", "web1"), "the pins of images of web1"):
        assert run("image", "pin", "web1", "newest", *pin[1:]).code == 11
        assert run("image", "unpin", "web1", "newest").code == 11
        reasons = [row["reason"] for row in json.loads(run("run", "replicate", "--json").out)]
        assert any("no replica was given up: the pins of images of web1 is locked" in reason for reason in reasons)
    assert run("image", "pin", "web1", "newest", *pin[1:]).code == 0


def test_trash_is_not_emptied_by_a_clock_in_doubt_until_it_is_confirmed(site: FakeSite, run) -> None:
    assert run("run", "nightly", "--client", "db1").code == 0
    trash = site.permanent / "db1/.trash-2026-01-01-daily.9-abcd"
    trash.mkdir()
    assert run("store", "clock").code == 0
    a_year_ago = time.time() - 365 * 86400
    os.utime(site.permanent / ".gbs-clock", (a_year_ago, a_year_ago))
    ended = run("run", "permanent", "--client", "db1", "--json")
    assert ended.code == 3
    row = json.loads(ended.out)[-1]
    assert (row["client"], row["outcome"]) == ("all clients", "WARNING")
    assert re.search(r"not removed: nothing is given up .* latest time seen before .*: gbs store clock", row["reason"])
    assert trash.exists()
    assert run("reject", "db1", "--reason", "x").code == 1
    assert run("store", "clock").code == 3
    assert run("store", "clock", "--confirm").code == 0
    assert run("run", "permanent", "--client", "db1").code == 0
    assert not trash.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("run", "nightly"),
        ("run", "overnight"),
        ("run", "devices"),
        ("reconcile",),
        ("status",),
        ("pin", "db1", "daily.0", "--until", "2100-01-01", "--reason", "audit"),
        ("accept", "db1", "--reason", "upgrade"),
        ("retention", "explain", "db1"),
    ],
    ids=" ".join,
)
def test_near_store_that_is_not_mounted_is_not_written_to(site: FakeSite, run, words: tuple[str, ...]) -> None:
    """Its mount point is an empty folder then."""
    shutil.rmtree(site.store)
    site.store.mkdir()
    ended = run(*words)
    assert ended.code not in (0, 3)
    assert f"store {site.store} is not the right one: the marker .gbs-near-store is missing" in ended.err
    assert site.calls == []
    assert list(site.store.iterdir()) == list(site.permanent.glob("[!.]*")) == []
