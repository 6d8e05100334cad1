"""Files go back whole to a folder and over ssh, never through a link, and never over what is there without a word."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.drivers import file_recovery, rsync_back, ssh
from tasks.drivers.digest import sha256_file, write_listing
from tasks.drivers.rsync_back import Return
from tasks.drivers.ssh import Shell
from tasks.errors import AccessDenied, RecoveryRefused
from tasks.model.file_recovery import Destination, Kind, Placed, on_the_way, placed
from tasks.model.manifest import NightManifest
from tests.lab.hostile_tree import NAMES, looks, make_tree
from tests.lab.sshd import Sshd, make_key
from tests.unit.records import night_manifest

FROM_ROOT = Placed("", (".",))


@pytest.fixture
def folder(lab_folder: Path) -> Iterator[Path]:
    """A folder that sshd trusts keys in."""
    made = lab_folder / "files"
    made.mkdir(mode=0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def shell(folder: Path) -> Iterator[Shell]:
    daemon = Sshd(folder / "sshd", make_key(folder / "id", "gbs tests"))
    daemon.start()
    try:
        with ssh.connect(daemon.target("web1", folder / "id")) as opened:
            yield opened
    finally:
        daemon.stop()


def night(folder: Path, files: dict[str, str]) -> NightManifest:
    for name, text in files.items():
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    write_listing(folder / "data", folder / "SHA256SUMS", None, None)
    return night_manifest(listing_sha256=sha256_file(folder / "SHA256SUMS"))


def give_back(given: Return) -> None:
    rsync_back.copy(given, deadline_s=60, on_progress=lambda *_: None)


@pytest.mark.parametrize("fake_super", [False, True])
def test_every_kind_of_file_is_what_it_was(tmp_path: Path, fake_super: bool) -> None:
    (tmp_path / "client").mkdir()
    make_tree(tmp_path / "client")
    whole = looks(tmp_path / "client")
    (tmp_path / "night").mkdir()
    argv = ["rsync", "-aHAXS", "--numeric-ids", *(["-M--fake-super"] if fake_super else [])]
    subprocess.run([*argv, f"{tmp_path}/client/", f"{tmp_path}/night/data/"], check=True)
    (tmp_path / "back").mkdir()
    give_back(Return(tmp_path / "night" / "data", FROM_ROOT, str(tmp_path / "back"), fake_super=fake_super))
    assert looks(tmp_path / "back") == whole


def test_hostile_names_go_over_ssh_by_name_and_are_proven_there(tmp_path: Path, shell: Shell) -> None:
    client, saved = tmp_path / "client's root", tmp_path / "night"
    (client / "kept").mkdir(parents=True)
    (saved / "data").mkdir(parents=True)
    make_tree(saved / "data")
    manifest = night(saved, {})
    names = tuple(f"names/{os.fsdecode(name)}" for name in NAMES)
    chosen = file_recovery.examine(saved, manifest, names)
    assert (len(chosen.files), chosen.missing) == (len(NAMES), ())
    kinds = file_recovery.kinds_there(shell, str(client), on_the_way(names))
    assert set(kinds.values()) == {Kind.NOTHING}
    (where,) = placed(Destination(str(client), "web1"), names, kinds)
    give_back(Return(saved / "data", where, str(client), shell.target))
    assert sorted(os.listdir(os.fsencode(client / "names"))) == sorted(NAMES)
    assert file_recovery.damaged_there(shell, str(client), str(tmp_path / "sums"), chosen.files, 60) == []
    (client / "names" / os.fsdecode(NAMES[0])).write_text("other")
    said = file_recovery.damaged_there(shell, str(client), str(tmp_path / "sums"), chosen.files, 60)
    assert any("-rf: FAILED" in line for line in said)
    assert not os.listdir(tmp_path / "sums")
    assert not (tmp_path / "pwned").exists()


def test_what_is_there_is_seen_and_kept_aside_and_folders_above_are_left_alone(tmp_path: Path, shell: Shell) -> None:
    client, saved = tmp_path / "client", tmp_path / "night"
    night(saved, {"etc/app/conf": "night", "etc/app/same": "same", "etc/app/new/deep": "deep"})
    (client / "etc" / "app").mkdir(parents=True)
    (client / "etc").chmod(0o711)
    (client / "etc/app/conf").write_text("today")
    (client / "etc/app/mine").write_text("mine")
    subprocess.run(["cp", "-p", saved / "data/etc/app/same", client / "etc/app/same"], check=True)
    before = (client / "etc").stat()
    kinds = file_recovery.kinds_there(shell, str(client), on_the_way(["etc/app"]))
    (where,) = placed(Destination(str(client), "web1"), ["etc/app"], kinds)
    given = Return(saved / "data", where, str(client), shell.target, compare=True, backup_folder=str(tmp_path / "old"))
    (line,) = rsync_back.differing(given, deadline_s=60)
    assert line.endswith(" /etc/app/conf")
    assert (client / "etc/app/conf").read_text() == "today"
    give_back(given)
    assert [(client / "etc/app" / name).read_text() for name in ("conf", "same", "new/deep", "mine")] == [
        *("night", "same", "deep", "mine")
    ]
    assert (tmp_path / "old/etc/app/conf").read_text() == "today"
    after = (client / "etc").stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_damage_of_the_same_size_and_time_at_the_destination_is_replaced(tmp_path: Path) -> None:
    saved, there = tmp_path / "night", tmp_path / "there"
    night(saved, {"a": "good"})
    subprocess.run(["cp", "-a", saved / "data", there], check=True)
    status = (there / "a").stat()
    (there / "a").write_text("evil")
    os.utime(there / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    given = Return(saved / "data", Placed("", ("a",)), str(there), compare=True, backup_folder=str(there / ".old"))
    assert len(rsync_back.differing(given, deadline_s=60)) == 1
    give_back(given)
    assert [(there / "a").read_text(), (there / ".old/a").read_text()] == ["good", "evil"]


@pytest.mark.parametrize("where", ["here", "there"])
def test_link_above_a_path_at_the_destination_refuses(tmp_path: Path, shell: Shell, where: str) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to/etc").symlink_to(tmp_path)
    names = on_the_way(["etc/app/conf"])
    root = tmp_path / "to"
    kinds = (
        file_recovery.kinds_here(root, names) if where == "here" else file_recovery.kinds_there(shell, str(root), names)
    )
    with pytest.raises(RecoveryRefused, match=r"to/etc is a link there"):
        placed(Destination(str(root)), ["etc/app/conf"], kinds)


def test_path_through_a_link_of_the_night_is_missing_and_says_where_it_is(tmp_path: Path) -> None:
    manifest = night(tmp_path, {"usr/lib/a": "a"})
    (tmp_path / "data/lib").symlink_to("usr/lib")
    chosen = file_recovery.examine(tmp_path, manifest, ["lib", "lib/a", "gone", "usr/lib/a"])
    assert chosen.missing == ("lib/a", "gone")
    assert chosen.links == {"lib/a": "/lib is a link to usr/lib"}


def test_damaged_file_is_found_and_the_night_that_has_it_whole(tmp_path: Path) -> None:
    nights = [tmp_path / name for name in ("n4", "n3", "n2", "n1")]
    manifests = [night(folder, {"a": "old" if folder.name == "n1" else "new"}) for folder in nights]
    (nights[1] / "data/a").unlink()
    os.link(nights[0] / "data/a", nights[1] / "data/a")
    (nights[0] / "data/a").write_text("bad")
    chosen = file_recovery.examine(nights[0], manifests[0], ["a"])
    (damage,) = file_recovery.damaged(nights[0] / "data", chosen.files)
    others = [(folder.name, folder, manifest) for folder, manifest in zip(nights, manifests, strict=True)][1:]
    assert file_recovery.whole_elsewhere(others, damage) == ("n2", True)
    assert file_recovery.whole_elsewhere([others[0], others[2]], damage) == ("n1", False)
    assert file_recovery.whole_elsewhere(others[:1], damage) is None


def test_key_that_may_only_read_is_refused_with_what_to_do(folder: Path) -> None:
    public = make_key(folder / "id", "gbs tests")
    daemon = Sshd(folder / "sshd", f'restrict,command="rrsync -ro /" {public}')
    daemon.start()
    try:
        with (
            ssh.connect(daemon.target("web1", folder / "id")) as shell,
            pytest.raises(AccessDenied, match=r"may not write there .*recovery_identity"),
        ):
            file_recovery.require_writer(shell, "files")
    finally:
        daemon.stop()
