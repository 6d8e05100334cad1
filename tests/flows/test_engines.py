"""Stage 2 and recovery where a policy names another engine than rsnapshot."""

import json
import random
import shutil
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.kvmimg_update import kvmimg_update as kvmimg_update_flow
from flows.nightly import nightly as nightly_flow
from flows.recover_files import recover_files as recover_files_flow
from flows.verify_points import verify_points as verify_points_flow
from tasks import catalogue, file_search, held, history, nights
from tasks.drivers import appliance
from tasks.drivers.appliance import UpdateResult
from tasks.errors import ClientsFailed, ConfigError, IntegrityError, NothingToRecover
from tasks.model.names import new_id
from tasks.model.night_choice import OVERNIGHT
from tests.flows.fake_site import FakeSite

nightly: Any = nightly_flow
kvmimg_update: Any = kvmimg_update_flow
recover_files: Any = recover_files_flow
verify_points: Any = verify_points_flow
VAULT = str(Path(__file__).parent.parent / "lab" / "vault.sh")


@pytest.fixture(params=["restic", "command"])
def kind(request: pytest.FixtureRequest, site: FakeSite) -> str:
    """A site whose every client has that engine."""
    for name, text in (
        ("password", "swordfish"),
        ("environment", f"VAULT_HOME={site.root}/vault\nVAULT_KEY=open sesame, vault"),
    ):
        path = site.root / name
        path.touch(mode=0o600)
        path.write_text(f"{text}\n")
    shutil.rmtree(site.root / "vault", ignore_errors=True)
    (site.root / "vault").mkdir()
    engine: dict[str, Any] = {"restic": {"password_file": str(site.root / "password")}}
    if request.param == "command":
        remark = [*("sh", "-c", 'printf "tape 7 is old\\n" >&2; "$@" && exit 4', "sh", VAULT)]
        engine = {
            "command": {
                "backup": [*remark, "backup", "{client}", "{night}", "{source}"],
                "list": [VAULT, "list", "{client}"],
                "restore": [VAULT, "restore", "{client}", "{night}", "{target}"],
                "exit_codes": {0: "ok", 4: "warning"},
                "environment_file": str(site.root / "environment"),
            }
        }
    declared = yaml.safe_load(site.inventory.read_text())
    declared |= {"engines": {"other": engine}, "policies": {"default": {"engine": "other", "daily": 2}}}
    site.inventory.write_text(yaml.safe_dump(declared))
    return str(request.param)


def test_nights_are_kept_listed_verified_and_recovered_from(
    site: FakeSite, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = nightly(["kvm1", "web1"])
    stage2 = [row for row in results if row.stage == "permanent"]
    assert [row.outcome.value for row in stage2] == ["OK" if kind == "restic" else "WARNING"] * 2
    assert all(row.produced for row in stage2)
    assert kind == "restic" or "tape 7 is old" in stage2[0].reasons[0]
    assert not list(site.permanent.glob("web1/daily.*"))
    site.files["web1"]["/srv/page"] = b"two\n"
    nightly(["web1"])
    listed = catalogue.nights("web1")
    assert [(night.name, night.folder is None) for night in listed] == [
        *((OVERNIGHT, False), ("daily.0", True), ("daily.1", True))
    ]
    assert [row.points for row in catalogue.protections().rows if row.client == "web1"] == [2]
    verified = verify_points(["web1"])
    assert [row.outcome.value for row in verified] == ["OK"]
    assert verified[0].bytes_moved > 0, "what was read is told"

    seen = list[tuple[Path, str]]()

    def update(_disks: object, _mounted: object, files: Path, **_: Any) -> UpdateResult:
        seen.append((files, (files / "srv" / "page").read_text()))
        if len(seen) > 1:
            raise IntegrityError("the appliance", "its end", "a kernel panic")
        return UpdateResult(1, 0, 4, 1.0, 1.0)

    monkeypatch.setattr(appliance, "update_files", update)
    updated = kvmimg_update("web1", "daily.1").folder.name
    while new_id(datetime.now(UTC)) == updated:
        time.sleep(0.05)  # a working copy is called by its second
    with pytest.raises(IntegrityError, match="kernel panic"):
        kvmimg_update("web1", "daily.0")
    assert [text for _, text in seen] == ["one\n", "two\n"]
    assert all(files.is_relative_to(site.store / "opened") and not files.exists() for files, _ in seen)


def test_encrypted_night_is_held_shown_and_accepted(site: FakeSite, kind: str) -> None:
    site.files["db1"] |= {f"/srv/{number}": b"plain text, and some more of it " * 30 for number in range(40)}
    (*_, first) = nightly(["db1"])
    for number in range(40):
        content = site.files["db1"].pop(f"/srv/{number}")
        site.files["db1"][f"/srv/{number}.locked"] = random.Random(number).randbytes(len(content))
    kept = "is pinned" if kind == "restic" else "only its backup application can keep"
    said = (
        rf"is held and nothing rotated: 40 of \d+ files .* look encrypted .* with night {first.produced}, which {kept}"
    )
    for _ in range(2):
        time.sleep(1)  # a night's id is of the second
        with pytest.raises(ClientsFailed, match=said):
            nightly(["db1"])
    (one, two) = (row.night for row in catalogue.held("db1")["db1"])
    row = next(row for row in catalogue.protections().rows if row.client == "db1")
    assert (row.outcome, row.points, row.held, row.newest_point) == ("FAILED", 1, (one, two), first.produced)
    (explained,) = history.explain("db1")
    assert explained.point.night == first.produced
    assert kind == "restic" or explained.next.endswith(f"keeps it; held: night {two} is not like it")
    assert [move.to for move in held.accept("db1", None, "a new release").moves if move.point.startswith(".held")]
    assert [night.manifest.id for night in catalogue.nights("db1")] == [two, two, first.produced]
    assert [move.point for move in held.accept("db1", two, "again").moves] == []
    assert catalogue.held("db1") == {"db1": []}


def test_files_are_found_compared_and_brought_back_from_nights_in_no_folder(site: FakeSite, kind: str) -> None:
    site.files["db1"]["/srv/page"] = b"one\n"
    nightly(["db1"])
    site.files["db1"]["/srv/page"] = b"two\n"
    nightly(["db1"])
    listed = catalogue.nights("db1")
    (page,), _ = file_search.find("db1", listed, "srv/page")
    assert len(page.versions) == (2 if kind == "restic" else 1)
    if kind == "restic":
        assert [row.path for row in file_search.diff("db1", listed, "daily.1", "latest", "/srv")] == ["/srv/page"]
        assert file_search.text_diff("db1", listed, "daily.1", "latest", "/srv/page")[3:5] == ["-one", "+two"]
    else:
        with pytest.raises(NothingToRecover, match="whole nights only"):
            file_search.diff("db1", listed, "daily.1", "latest", "/srv")
    done = recover_files("db1", ["/srv/page"], "daily.1", str(site.root / f"back-{kind}"))
    assert (site.root / f"back-{kind}" / "srv/page").read_text() == "one\n"
    assert done.verified == 1
    assert not list((site.store / "opened").glob("*/*"))


def test_history_that_is_out_of_reach_leaves_the_overnight_copy(site: FakeSite, kind: str) -> None:
    nightly(["db1"])
    (site.root / "password").write_text("another\n")
    (site.root / "environment").write_text("VAULT_KEY=another\n")
    assert [night.name for night in nights.nights_of("db1")] == [OVERNIGHT]
    row = next(row for row in catalogue.protections().rows if row.client == "db1")
    assert row.points is None
    assert "restore points: " in row.reasons[-1]
    with pytest.raises(ClientsFailed, match=r"failed: db1 permanent: "):
        nightly(["db1"])


def test_without_its_marker_nothing_is_written(site: FakeSite, kind: str) -> None:
    (site.permanent / ".gbs-store").unlink()
    with pytest.raises(ClientsFailed, match=r"the marker \.gbs-store is missing"):
        nightly(["db1"])
    assert list(site.permanent.iterdir()) == []
    assert list((site.root / "vault").iterdir()) == []


def test_what_a_vendor_keeps_is_its_affair(site: FakeSite, kind: str) -> None:
    nightly(["db1"])
    explained = json.dumps([row.next for row in history.explain("db1")])
    if kind == "restic":
        assert "becomes daily.1" in explained
        return
    assert explained == '["stays as long as its backup application keeps it"]'
    with pytest.raises(ConfigError, match="its backup application decides what is kept"):
        history.pin("db1", "daily.0", date.max, "audit")
