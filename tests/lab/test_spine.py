"""The spine: a real VM through all stages, its faults, its loss and its recovery, judged by tools that are not ours.

One world for the module, because a boot takes minutes without KVM; each test leaves it as it found it, and the
recovery has a world of nights of its own. Commands are run as an operator runs them; the recovery is started through
Prefect's API as its run form does.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.drivers.journal import unfinished
from tests.lab import by_hand, first_night
from tests.lab.data import change, inventory_of
from tests.lab.demo import Demo
from tests.lab.mixed_guest import MixedGuest
from tests.lab.published import assert_listed_chunks, outcomes
from tests.lab.tiny_guest import last_record

pytestmark = pytest.mark.timeout(1800)
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def world() -> Iterator[Demo]:
    """A lab with web1 up and seeded, a GBS site on it, a Prefect server with blocks and deployments, a worker."""
    demo = Demo(f"test-spine-{os.getpid()}")
    try:
        demo.set_up()
        yield demo
    finally:
        demo.down()


class Nights:
    """Two nights with a day's work between them, and what was seen meanwhile."""

    def __init__(self, demo: Demo) -> None:
        first_night.lay_out(demo.site)
        with _Answers(demo) as answers:
            self.first = gbs(demo, "run", "nightly", "--json")
        self.answers = answers.seen
        if self.first.returncode == 0:
            first_night.keep(demo.site)
        self.images_first = images_of(demo)
        change(demo.lab, 1)
        self.second = gbs(demo, "run", "nightly", "--json")
        self.images_second = images_of(demo)
        self.listing = inventory_of(demo.lab)


class _Answers:
    """When the VM answered over ssh while the block ran."""

    def __init__(self, demo: Demo) -> None:
        self.demo, self.seen, self._ended = demo, list[float](), threading.Event()

    def __enter__(self) -> _Answers:
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _ask(self) -> None:
        """Only while a journal says that an image is under way: a login costs the emulated guest a second."""
        while not self._ended.is_set():
            if not unfinished(self.demo.site.store / "journal", "kvm1"):
                time.sleep(0.05)
            elif self.demo.lab.web1.run("true", check=False, timeout_s=30).returncode == 0:
                self.seen.append(time.time())


@pytest.fixture(scope="module")
def nights(world: Demo) -> Nights:
    """The two nights."""
    return Nights(world)


def gbs(demo: Demo, *words: str, inventory: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run gbs (or, for `kvmimg-get` and its kin, the command of that name on web1) and return how it ended."""
    argv = [str(BIN / "gbs"), *words]
    if words[0].startswith("kvm"):
        argv = [str(BIN / f"gbs-{words[0]}"), *(words[1:] or ("web1",))]
    environment = {**demo.environment, **({"GBS_INVENTORY": str(inventory)} if inventory else {})}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=1500, check=False)


def images_of(demo: Demo) -> dict[str, dict[str, Any]]:
    """The manifests of web1's images, by folder."""
    found = sorted(demo.site.store.glob("images/kvm1/web1/*/manifest.json"))
    return {str(path.parent): json.loads(path.read_text()) for path in found}


def sources(demo: Demo) -> list[str]:
    """The files that libvirt says web1's disks are, live and in the stored definition."""
    live = demo.lab.kvm1.virsh("-q", "domblklist", "web1").split()
    stored = demo.lab.kvm1.virsh("-q", "domblklist", "web1", "--inactive").split()
    return [word for word in (*live, *stored) if word.startswith("/")]


def require_settled(demo: Demo) -> None:
    """web1 runs on its base, live and stored, and no overlay of ours is left on the host."""
    base = "/var/lib/libvirt/images/web1.qcow2"
    assert sources(demo) == [base, base]
    assert demo.lab.kvm1.virsh("domstate", "web1").strip() == "running"
    assert [path.name for path in demo.lab.kvm1.images.glob("*.gbs-*")] == []


def sha256sum_check(folder: Path) -> None:
    """sha256sum(1) finds every file of a night as its listing says."""
    argv = ["sha256sum", "--check", "--quiet", "--strict", "../SHA256SUMS"]
    done = subprocess.run(argv, cwd=folder / "data", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nightly_first_run_is_ok_in_every_stage(world: Demo, nights: Nights) -> None:
    assert nights.first.returncode == 0, nights.first.stderr[-3000:]
    found = outcomes(nights.first)
    stages = ("prepare", "overnight", "permanent")
    expected = {(client, stage): "OK" for client in ("kvm1", "web1") for stage in stages}
    server = {("GBS server", stage): "OK" for stage in ("recovery set", "replicate")}
    assert found == {**expected, **server, ("web1", "image"): "OK", ("web1", "replicate"): "OK"}


def test_image_and_recovery_set_are_in_the_permanent_store_and_open_with_the_recovery_key(
    world: Demo, nights: Nights
) -> None:
    site = world.site
    for folder in nights.images_first:
        subprocess.run(["diff", "-r", folder, site.permanent / "_images/kvm1/web1" / Path(folder).name], check=True)
    gathered = sorted((site.permanent / "_server/lab").glob("[!.]*"))[0]
    subprocess.run(["diff", "-r", gathered, site.store / "server" / gathered.name], check=True)
    opened = {
        name: subprocess.run(
            ["age", "--decrypt", "-i", site.recovery_key, gathered / name], check=True, capture_output=True
        ).stdout
        for name in ("keys.tar.age", "prefect.db.age")
    }
    argv = ["tar", "-x", "--to-stdout", str(world.lab.private_key).lstrip("/")]
    key = subprocess.run(argv, input=opened["keys.tar.age"], check=True, capture_output=True).stdout
    assert key == world.lab.private_key.read_bytes()
    assert opened["prefect.db.age"].startswith(b"SQLite format 3")


def test_snaplive_image_is_sound_and_window_closed(world: Demo, nights: Nights) -> None:
    for folder, manifest in nights.images_first.items():
        (disk,) = manifest["disks"]
        assert (disk["format"], disk["source_format"]) == ("raw", "qcow2")
        listed = [f"{file['sha256']}  {file['path']}" for file in manifest["files"] if file["sha256"]]
        assert len(listed) == len(list(Path(folder).iterdir())) - 2, "all but the manifest and the disk"
        text = "\n".join(listed)
        subprocess.run(["sha256sum", "--check", "--quiet"], cwd=folder, input=text, text=True, check=True)
        assert_listed_chunks(Path(folder), disk["file"])
        used = Path(folder, disk["file"]).stat().st_blocks * 512
        assert used < 1.2 * manifest["bytes_moved"] < 2 << 30, "only what was written travelled, thin stayed thin"
        assert manifest["method"] == "snaplive"
        assert manifest["consistency"] == "file-system"
        print(
            f"window {manifest['window_s']:.2f} s, copy {manifest['copy_s']:.2f} s, frozen {manifest['frozen_s']:.2f} s"
        )
    require_settled(world)


def test_snaplive_vm_answers_while_its_image_is_taken(world: Demo, nights: Nights) -> None:
    manifest = list(nights.images_first.values())[-1]
    began = time.mktime(time.strptime(manifest["instant"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    during = [moment for moment in nights.answers if began <= moment <= began + manifest["window_s"]]
    assert during, "no ssh login succeeded between snapshot and pivot"


def test_nightly_second_run_copies_no_image(world: Demo, nights: Nights) -> None:
    assert nights.second.returncode == 0, nights.second.stderr[-3000:]
    assert outcomes(nights.second)["web1", "image"] == "SKIPPED"
    assert nights.images_second == nights.images_first


def test_nights_are_what_their_listings_say_by_sha256sum(world: Demo, nights: Nights) -> None:
    for client in ("kvm1", "web1"):
        sha256sum_check(world.site.store / "overnight" / client)
        for point in ("daily.0", "daily.1"):
            sha256sum_check(world.site.permanent / client / point)


def test_restore_points_hold_the_night_before_and_after_the_change(world: Demo, nights: Nights) -> None:
    root = world.site.permanent / "web1"
    night = "data/srv/data/night"
    assert [(root / point / night).read_text() for point in ("daily.1", "daily.0")] == ["0\n", "1\n"]


def test_kvm_host_backup_holds_the_vm_definition(world: Demo, nights: Nights) -> None:
    text = (world.site.store / "overnight/kvm1/data/etc/libvirt/qemu/web1.xml").read_text()
    assert world.lab.kvm1.virsh("domuuid", "web1").strip() in text


def test_recovery_of_a_vm_that_runs_is_refused_in_one_line(world: Demo, nights: Nights) -> None:
    done = gbs(world, "recover", "vm", "web1")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: recovery of VM web1 refused: kvm1 has a VM of that name")


@pytest.mark.parametrize(
    "words",
    [("kvmimg-get", "nosuch"), ("recover", "vm", "nosuch"), ("run", "nightly", "--client", "nosuch")],
    ids=["image of unknown VM", "recovery of unknown VM", "night of unknown client"],
)
def test_unknown_name_is_one_clear_line(world: Demo, nights: Nights, words: tuple[str, ...]) -> None:
    done = gbs(world, *words)
    assert done.returncode in (2, 10)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "nosuch" in line


@contextmanager
def _hidden(path: Path) -> Iterator[None]:
    aside = path.with_name("aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


def _tree(folder: Path) -> list[bytes]:
    argv = ["find", str(folder), "-printf", "%p %i %T@ %C@\\n"]
    return sorted(subprocess.run(argv, capture_output=True, check=True).stdout.splitlines())


def test_permanent_store_without_marker_is_not_written(world: Demo, nights: Nights) -> None:
    with _hidden(world.site.permanent / ".gbs-store"):
        before = _tree(world.site.permanent)
        done = gbs(world, "run", "permanent", "--client", "kvm1")
        assert _tree(world.site.permanent) == before
    assert done.returncode == 1
    assert "the marker .gbs-store is missing; nothing was written" in done.stderr


def test_store_full_keeps_the_last_good_night(world: Demo, nights: Nights) -> None:
    staging = world.site.store / "overnight/.partial"
    staging.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(staging)], check=True)
    try:
        done = gbs(world, "run", "overnight", "--client", "kvm1")
    finally:
        subprocess.run(["umount", str(staging)], check=True)
    assert done.returncode == 1
    assert "has no room" in done.stderr
    sha256sum_check(world.site.store / "overnight/kvm1")
    assert gbs(world, "run", "overnight", "--client", "kvm1").returncode == 0


def test_kvmsnap_create_then_purge_puts_the_vm_back_on_its_base(world: Demo, nights: Nights) -> None:
    created = gbs(world, "kvmsnap-create")
    assert created.returncode == 0, created.stderr[-3000:]
    assert all(re.search(r"web1\.qcow2\.gbs-", source) for source in sources(world))
    refused = gbs(world, "kvmimg-get")
    assert refused.returncode == 1
    assert "gbs-kvmsnap-purge ends it" in refused.stderr
    purged = gbs(world, "kvmsnap-purge")
    assert purged.returncode == 0, purged.stderr[-3000:]
    require_settled(world)


def test_kvmsnap_holds_every_kind_of_disk_for_another_tool_and_purge_ends_all(
    world: Demo, nights: Nights, tmp_path: Path
) -> None:
    mixed = MixedGuest(world.lab.kvm1, "mixed")
    try:
        mixed.start()
        before = mixed.wait_for_record(20)
        blocks = world.lab.kvm1.virsh("domblklist", "mixed")
        assert gbs(world, "run", "overnight", "--client", "kvm1").returncode == 0
        for vm in ("mixed", "web1"):
            created = gbs(world, "kvmsnap-create", vm)
            assert created.returncode == 0, created.stderr[-3000:]
        assert world.lab.kvm1.virsh("domblklist", "mixed").count(".gbs-") == 3
        records = []
        for disk in mixed.disks:
            copied = tmp_path / f"{disk.target}.raw"
            argv = ["qemu-img", "convert", "-U", "-f", disk.format, "-O", "raw", str(mixed.outside(disk.path))]
            subprocess.run([*argv, str(copied)], check=True)
            records.append(last_record(copied, "raw"))
        assert min(records) >= before
        assert max(records) - min(records) <= 1, "the disks are not from one instant"
        purged = gbs(world, "kvmsnap-purge", "--all")
        assert purged.returncode == 0, purged.stderr[-3000:]
        require_settled(world)
        assert world.lab.kvm1.virsh("domblklist", "mixed") == blocks
        assert world.lab.kvm1.virsh("domstate", "mixed").strip() == "running"
        mixed.wait_for_record(records[0] + 50)
    finally:
        mixed.destroy()


def test_template_of_the_vm_serves_it_and_not_its_host(world: Demo, nights: Nights) -> None:
    """The flavour that libguestfs finds in the image is the one of the client's facts, in every point."""
    added = gbs(world, "image", "template", "add", "web1", "--json")
    assert added.returncode == 0, added.stderr[-3000:]
    night = json.loads((world.site.store / "overnight/web1/manifest.json").read_text())
    (template,) = json.loads(added.stdout)
    served = gbs(world, "image", "template", "match", "web1", "--json")
    assert served.returncode == 0, served.stdout
    assert {row["verdict"] for row in json.loads(served.stdout)} == {"same"}
    assert template["flavour"] == night["flavour"]
    refused = gbs(world, "image", "template", "match", "kvm1", "--json")
    assert refused.returncode == 10
    assert "DIFFERS" in {row["verdict"] for row in json.loads(refused.stdout)}


def _kill_in_window(world: Demo, step: str) -> None:
    """SIGKILL gbs-kvmimg-get once it has noted `step`, and reconcile."""
    uuid = world.lab.kvm1.virsh("domuuid", "web1").strip()
    journal = world.site.store / f"journal/kvm1/{uuid}.jsonl"
    argv = [str(BIN / "gbs-kvmimg-get"), "web1"]
    run = subprocess.Popen(argv, env=world.environment, stderr=subprocess.DEVNULL, start_new_session=True)
    ends_at = time.monotonic() + 300
    while not (journal.exists() and f'"{step}"' in journal.read_text()):
        assert time.monotonic() < ends_at
        assert run.poll() is None
        time.sleep(0.002)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    reached = {json.loads(line)["step"] for line in journal.read_text().splitlines()}
    assert ("THAW" in reached) is (step == "THAW"), reached
    assert step == "FREEZE" or any(".gbs-" in source for source in sources(world))
    done = gbs(world, "reconcile")
    assert done.returncode == 0, done.stderr[-3000:]
    require_settled(world)
    assert world.lab.web1.run("touch /root/writable && sync /root/writable", timeout_s=30).returncode == 0


def _on_kvm1(demo: Demo) -> tuple[str, ...]:
    """All that libvirt and its folder of images have, and what web1's disk is."""
    kvm1 = demo.lab.kvm1
    files = sorted(str(path.relative_to(kvm1.images)) for path in kvm1.images.rglob("*"))
    return (kvm1.virsh("list", "--all", "--uuid", "--name"), kvm1.virsh("net-list", "--all"), *files, *sources(demo))


def test_drill_proves_a_vm_that_runs_and_leaves_nothing(world: Demo, nights: Nights) -> None:
    before = _on_kvm1(world)
    done = gbs(world, "drill", "web1", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (world.site.store / "drills/web1").iterdir()
    drilled = json.loads((folder / "manifest.json").read_text())
    assert (drilled["outcome"], drilled["reasons"]) == ("OK", [])
    assert drilled["night"] == json.loads((world.site.store / "overnight/web1/manifest.json").read_text())["id"]
    assert {"postgresql shop", "mariadb crm"} <= set(drilled["databases"])
    assert len(drilled["probes"]) == 2, "as the site declares them"
    said = subprocess.run(["file", "--brief", folder / "console.png"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("PNG image data")
    assert "gbs-drill-web1" in done.stderr, "it says under which name it is there"
    assert _on_kvm1(world) == before
    assert world.lab.web1.run("cat /srv/data/night").stdout == b"1\n", "the first one runs and is what it was"


def test_drill_that_could_not_run_is_no_success(world: Demo, nights: Nights) -> None:
    done = gbs(world, "drill", "web1", "--to", "nosuch")
    assert done.returncode == 1
    newest = max((world.site.store / "drills/web1").iterdir())
    assert json.loads((newest / "manifest.json").read_text())["outcome"] == "FAILED"
    (row,) = [row for row in json.loads(gbs(world, "status", "--json").stdout) if row["client"] == "web1"]
    assert row["proven restorable"], "the last good drill is still the last proof"
    metrics = (world.site.store / "metrics/gbs.prom").read_text()
    assert 'gbs_drill_good{vm="web1"} 0.0' in metrics
    assert 'gbs_drill_proven_timestamp_seconds{vm="web1"} ' in metrics


def test_flow_killed_in_the_window_is_reconciled_and_the_next_image_succeeds(world: Demo, nights: Nights) -> None:
    """At FREEZE the guest is frozen, or just about to be; nobody of ours is left who would thaw it."""
    _kill_in_window(world, "FREEZE")
    _kill_in_window(world, "THAW")
    again = gbs(world, "kvmimg-get")
    assert again.returncode == 0, again.stderr[-3000:]
    assert list(world.site.store.glob("images/kvm1/web1/.partial-*")) == []


def _root_offset(world: Demo) -> int:
    """Where in its disk the root file system lies, in bytes, as the VM says."""
    script = "dmsetup table vg0-root | cut -d ' ' -f 5; cat /sys/class/block/vda3/start"
    return sum(int(word) for word in world.lab.web1.run(script).stdout.split()) * 512


def _read_in_root(world: Demo, disk: Path, path: str) -> str:
    """A file in the root file system of an image, read by debugfs(8)."""
    argv = ["debugfs", "-R", f"cat {path}", f"{disk}?offset={_root_offset(world)}"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_increment_of_the_backup_api_holds_what_was_written_last(world: Demo, nights: Nights) -> None:
    taken = []
    for number in (1, 2):
        world.lab.web1.run(f"echo {number} >/srv/increment && sync")
        done = gbs(world, "kvmimg-get", "web1", "--method", "backup-api", "--json")
        assert done.returncode == 0, done.stderr[-3000:]
        taken.append(json.loads(done.stdout))
        require_settled(world)
    full, increment = taken
    assert (increment["method"], increment["consistency"]) == ("backup-api", "file-system")
    assert increment["parent"] == full["id"]
    assert increment["disks"][0]["increment"] == f"its changes since image {full['id']}"
    assert increment["bytes_moved"] < full["bytes_moved"] / 2
    folder = world.site.store / "images/kvm1/web1" / increment["id"]
    assert _read_in_root(world, folder / "vda.raw", "/srv/increment") == "2\n"


class SnapshotNight:
    """The last night, read from LVM snapshots; two are there already, one of a crashed run and one of somebody else."""

    def __init__(self, demo: Demo, folder: Path) -> None:
        change(demo.lab, 2)
        declared = demo.site.declaration()
        clients: Any = declared["clients"]
        clients["web1"]["snapshot"] = "auto"
        inventory = folder / "inventory.yaml"
        inventory.write_text(yaml.safe_dump(declared))
        night = demo.site.store / "overnight/web1"
        self.unchanged = night / "data/etc/hostname"
        self.inode = self.unchanged.stat().st_ino
        self.runs = [gbs(demo, "run", "prepare", "--client", "web1")]
        taking = "lvcreate --quiet --snapshot --addtag gbs --extents 2 --name"
        demo.lab.web1.run(f"{taking} gbs-20260101T000000Z-0 vg0/root && {taking} keep vg0/var")
        try:
            self.runs.append(gbs(demo, "run", "overnight", "--client", "web1", inventory=inventory))
            look = "lvs --noheadings -o lv_name; findmnt -n -l -o TARGET | grep gbs-snapshot"
            self.left = demo.lab.web1.run(look, check=False).stdout.decode().split()
        finally:
            demo.lab.web1.run("lvremove --quiet --yes vg0/keep")
        self.runs.append(gbs(demo, "run", "permanent", "--client", "web1"))
        self.listing = inventory_of(demo.lab)


@pytest.fixture(scope="module")
def last_night(world: Demo, nights: Nights, tmp_path_factory: pytest.TempPathFactory) -> SnapshotNight:
    """The night that the recovery brings back."""
    return SnapshotNight(world, tmp_path_factory.mktemp("snapshot"))


def test_night_is_read_from_lvm_snapshots_that_are_gone_afterwards(world: Demo, last_night: SnapshotNight) -> None:
    """Root is ext4 and /var XFS on LVM, /boot a partition."""
    for run in last_night.runs:
        assert run.returncode == 0, run.stderr[-3000:]
    assert set(last_night.left) == {"root", "var", "keep"}
    night = world.site.store / "overnight/web1"
    manifest = json.loads((night / "manifest.json").read_text())
    sources = {source["place"]: source for source in manifest["sources"]}
    assert {place: source["kind"] for place, source in sources.items()} == {"/": "lvm", "/boot": "live", "/var": "lvm"}
    assert sources["/boot"]["reason"] == "ext4 on /dev/vda2 is not on LVM"
    assert all(manifest["started"] < sources[place]["instant"] < manifest["ended"] for place in ("/", "/var"))
    sha256sum_check(night)
    assert last_night.unchanged.stat().st_ino == last_night.inode, "what did not change must be a link to last night's"
    for pattern in ("boot/vmlinuz-*", "var/lib/dpkg/status", "srv/data/night"):
        assert list((night / "data").glob(pattern)), pattern


def _keeping_by_restic(demo: Demo, folder: Path) -> Path:
    """An inventory like the site's, whose restore points are kept by restic."""
    password = folder / "password"
    password.touch(mode=0o600)
    password.write_text("swordfish\n")
    policy = {"image_method": "snaplive", "engine": "vault", "brake": "off"}
    engines = {"vault": {"restic": {"password_file": str(password)}}}
    declared = {**demo.site.declaration(), "engines": engines, "policies": {"default": policy}}
    inventory = folder / "restic.yaml"
    inventory.write_text(yaml.safe_dump(declared))
    return inventory


def test_image_updated_from_a_restic_point_holds_that_night(
    world: Demo, last_night: SnapshotNight, tmp_path: Path
) -> None:
    """By debugfs(8) and sha256sum(1), while the night is nowhere but in restic."""
    inventory = _keeping_by_restic(world, tmp_path)
    kept = gbs(world, "run", "permanent", "--client", "web1", inventory=inventory)
    assert kept.returncode == 0, kept.stderr[-3000:]
    night = world.site.store / "overnight/web1"
    listing = (night / "SHA256SUMS").read_bytes().splitlines(keepends=True)
    with _hidden(night):
        done = gbs(world, "kvmimg-update", "web1", "--from", "daily.0", "--json", inventory=inventory)
    assert done.returncode == 0, done.stderr[-3000:]
    updated = json.loads(done.stdout)
    (disk,) = updated["disks"]
    argv = ["qemu-img", "convert", "-f", disk["format"], "-O", "raw", f"{updated['folder']}/{disk['file']}"]
    subprocess.run([*argv, str(tmp_path / "vda.raw")], check=True)
    root = tmp_path / "root"
    root.mkdir()
    argv = ["debugfs", "-R", f"rdump / {root}", f"{tmp_path}/vda.raw?offset={_root_offset(world)}"]
    subprocess.run(argv, capture_output=True, check=True)
    # /boot and /var are file systems of their own.
    lines = [line for line in listing if not re.match(rb"\\?\w{64}  (boot|var)/", line)]
    assert len(lines) > 1000
    argv = ["sha256sum", "--check", "--quiet", "--strict"]
    proof = subprocess.run(argv, cwd=root, input=b"".join(lines), capture_output=True, check=False)
    assert proof.returncode == 0, proof.stdout[-2000:] + proof.stderr[-2000:]
    assert (root / "srv/data/night").read_text() == "2\n"
    assert not any((world.site.store / "opened").rglob("daily.0"))


def test_recovery_by_a_worker_brings_back_the_last_night(world: Demo, last_night: SnapshotNight) -> None:
    uuid = world.lab.kvm1.virsh("domuuid", "web1").strip()
    world.disaster()
    assert "web1" not in world.lab.kvm1.virsh("list", "--all", "--name")
    run = _start_deployment(world, "recover-vm/recover-vm", {"vm": "web1"})
    newest = list(images_of(world).values())[-1]
    assert newest["parent"], "the VM boots from an increment"
    state = _wait_for_run(world, run)
    assert state["type"] == "COMPLETED", state
    assert inventory_of(world.lab) == last_night.listing
    assert world.lab.kvm1.virsh("domuuid", "web1").strip() == uuid
    require_settled(world)


def test_check_finds_all_good_and_says_what_is_not(world: Demo) -> None:
    done = gbs(world, "check", "--json")
    assert done.returncode == 0, done.stdout
    found = {(row["subject"], row["check"]) for row in json.loads(done.stdout)}
    for expected in (
        *(("client web1", "dumps in /var/backups/gbs"), ("client web1", "mariadb"), ("client web1", "ssh")),
        *(
            ("KVM host kvm1", "libvirt"),
            ("KVM host kvm1", "overlays"),
            ("KVM host kvm1", "recovered disks in /var/lib/libvirt/images"),
        ),
        *(("this server", "tool rsnapshot"), ("permanent store", str(world.site.permanent))),
    ):
        assert expected in found
    with _hidden(world.site.permanent / ".gbs-store"):
        done = gbs(world, "check")
    assert done.returncode == 1
    assert re.search(r"^BAD  permanent store: .*: the marker .gbs-store is missing", done.stdout, re.M)


def _api(demo: Demo, path: str, body: dict[str, Any] | None = None) -> Any:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"{demo.server.ui}/api{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def _start_deployment(demo: Demo, name: str, parameters: dict[str, Any]) -> str:
    deployment = _api(demo, f"/deployments/name/{name}")
    run = _api(demo, f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
    return str(run["id"])


def _wait_for_run(demo: Demo, run: str) -> dict[str, Any]:
    ends_at = time.monotonic() + 1500
    while time.monotonic() < ends_at:
        state: dict[str, Any] = _api(demo, f"/flow_runs/{run}")["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return state
        time.sleep(2)
    raise AssertionError(f"flow run {run} did not end")


def test_vm_comes_back_by_its_runbook_when_server_and_store_are_lost(
    world: Demo, last_night: SnapshotNight, tmp_path: Path
) -> None:
    """Of GBS there is only what it left in the permanent store; bash and the system's own programs do the rest."""
    uuid = world.lab.kvm1.virsh("domuuid", "web1").strip()
    replicated = gbs(world, "run", "replicate")
    assert replicated.returncode == 0, replicated.stderr[-3000:]
    runbook = world.site.permanent / "_runbooks/web1.sh"
    printed = gbs(world, "plan", "vm", "web1", "--permanent")
    assert printed.stdout.splitlines()[5:] == runbook.read_text().splitlines()[5:], "but for when it was made"
    with _hidden(world.site.store):
        running = by_hand.run(by_hand.decided(runbook.read_text(), WORK=tmp_path / "first"))
        assert (running.returncode, running.stderr) == (
            1,
            "FAILED: the KVM host has a VM of that name: rename it (virsh domrename)\n",
        )
        world.disaster()
        done = by_hand.run(by_hand.decided(runbook.read_text(), WORK=tmp_path / "second"))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "== Done. web1 runs." in done.stdout
    assert inventory_of(world.lab) == last_night.listing
    assert world.lab.kvm1.virsh("domuuid", "web1").strip() == uuid
    require_settled(world)
