"""A Debian guest with UEFI firmware and two disks, one raw: images of it come back by hand, with plain tools only."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks import instant, places, recovery_assessment
from tasks.drivers import backup_api, live_image, offline_image, vm_parts
from tasks.drivers.agent_shell import AgentShell
from tasks.drivers.backup_survey import Parent
from tasks.drivers.digest import sha256_file
from tasks.drivers.host_shell import HostShell
from tasks.drivers.image_order import Order
from tasks.drivers.journal import Journal
from tasks.drivers.libvirt_host import Host
from tasks.drivers.ssh import Shell
from tasks.drivers.store import Store
from tasks.errors import CommandFailed, CommandTimedOut
from tasks.model.domain_recovery import Rewritten
from tasks.model.facts import Facts
from tasks.model.image_method import Wishes
from tasks.model.image_taken import Taken
from tasks.model.instant import InstantVm, on_overlays
from tasks.model.manifest import ImageManifest
from tasks.model.recovery import Original
from tasks.model.recovery_plan import Order as RecoveryOrder
from tasks.model.runbook import Place, Runbook
from tasks.model.runbook_script import render
from tasks.model.ssh_target import SshTarget
from tests.lab import by_hand
from tests.lab.agent_guest import FOLDER
from tests.lab.guest_build import appliance
from tests.lab.kvm_host import KvmHost
from tests.lab.published import manifest_of
from tests.lab.uefi_guest import UefiGuest
from tests.unit.records import NIGHT, facts, file_system, night_manifest

pytestmark = pytest.mark.timeout(900)

WISHES = Wishes(min_free_bytes=1 << 20, shutdown_deadline_s=240)
SUMS = "cd / && sha256sum root/words srv/words srv/random"
ROOT_OFFSET = (2048 + 64 * 2048) * 512
NEEDS_RECOVERY = "needs_recovery"
LISTED = {"listing": "SHA256SUMS", "facts": "facts.json"}


@pytest.fixture(scope="module")
def guest(kvm_host: KvmHost) -> Iterator[UefiGuest]:
    """A running guest that has told its firmware where its boot loader lies."""
    made = UefiGuest(kvm_host, "efi1")
    try:
        made.install()
        yield made
    finally:
        made.lose()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the images lie that later tests look at."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture
def take(host: Host, shell: Shell, kvm_target: SshTarget, kept: Path, guest: UefiGuest) -> Callable[..., Taken]:
    """Takes an image by a method into a new folder of that name."""

    def run(method: Callable[[Order], Taken], name: str, parent: Parent | None = None) -> Taken:
        folder, uuid = kept / name, host.domain(guest.name).uuid
        folder.mkdir()
        journal = Journal(kept / "journal.jsonl")
        taken = method(Order(host, shell, kvm_target, journal, uuid, name, folder, WISHES, parent=parent))
        assert journal.open_window() is None
        return taken

    return run


def features(image: Path, offset: int = 0) -> str:
    """The features of an ext4 file system in a raw image, among which is whether its journal must be replayed."""
    argv = ["dumpe2fs", "-h", f"{image}?offset={offset}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return next(line for line in done.stdout.splitlines() if line.startswith("Filesystem features"))


def assert_at_rest(folder: Path) -> None:
    """Both of its ext4 file systems were frozen or unmounted: neither has a journal to replay."""
    assert NEEDS_RECOVERY not in features(folder / "vda.raw", ROOT_OFFSET)
    assert NEEDS_RECOVERY not in features(folder / "vdb.raw")
    subprocess.run(["e2fsck", "-fn", str(folder / "vdb.raw")], check=True, capture_output=True)


def test_a_running_guest_is_not_at_rest(guest: UefiGuest) -> None:
    """What makes `assert_at_rest` worth something."""
    assert NEEDS_RECOVERY in features(guest.outside(guest.disks["vdb"]))


def test_commands_run_in_the_guest_by_its_agent_and_end_at_their_deadline(host: Host, guest: UefiGuest) -> None:
    shell = AgentShell(host.domain(guest.name))
    said = shell.run(["printf", "%s", "a 'b' $(c)\n\udcff"], deadline_s=60)
    assert said.stdout == "a 'b' $(c)\n\udcff", "an argv is not a script, and bytes stay bytes"
    with pytest.raises(CommandFailed, match="failed with status 3: no, in efi1"):
        shell.run("echo no, in $(hostname) >&2; exit 3", deadline_s=60)
    assert shell.run("exit 3", deadline_s=60, check=False).status == 3
    with pytest.raises(CommandTimedOut):
        shell.run(["sleep", "4321"], deadline_s=2)
    assert guest.run("pgrep -fx 'sleep 4321' || echo none") == "none\n"


def test_increment_was_frozen_by_the_agent_and_is_smaller(
    take, host: Host, shell: HostShell, kvm_target: SshTarget, kept: Path, guest: UefiGuest
) -> None:
    guest.run("echo first | tee /root/words /srv/words && dd if=/dev/urandom of=/srv/random bs=1M count=8 && sync")
    full = take(backup_api.take, "full")
    assert full.consistency == "file-system"
    assert_at_rest(kept / "full")
    guest.run("echo second | tee /root/words /srv/words")
    (kept / "expected").write_text(guest.run(SUMS))
    uuid = host.domain(guest.name).uuid
    parent = Parent(kept / "full", manifest_of(full, kept / "full", uuid))
    increment = take(backup_api.take, "increment", parent)
    assert increment.parent == "full"
    assert increment.bytes_moved < full.bytes_moved
    assert_at_rest(kept / "increment")
    parts = vm_parts.capture(host, shell, kvm_target, host.domain(guest.name), kept / "increment")
    made = manifest_of(increment, kept / "increment", uuid, parts)
    (kept / "increment/manifest.json").write_text(made.model_dump_json())


def test_snaplive_image_was_frozen_by_the_agent(take, guest: UefiGuest, kept: Path) -> None:
    taken = take(live_image.take, "snaplive")
    assert taken.consistency == "file-system"
    assert_at_rest(kept / "snaplive")
    assert guest.run("touch /srv/thawed && echo yes").strip() == "yes"


def test_agent_shuts_the_guest_down_for_an_offline_image(take, guest: UefiGuest, kept: Path) -> None:
    before = guest.host.virsh("domid", guest.name)
    taken = take(offline_image.take, "offline")
    assert (taken.consistency, taken.consistency_reason) == ("file-system", "it was shut down by its guest agent")
    assert_at_rest(kept / "offline")
    assert guest.host.virsh("domstate", guest.name).strip() == "running"
    assert guest.host.virsh("domid", guest.name) != before, "it was started again"


def test_guest_comes_back_by_hand_from_an_increment(kept: Path, guest: UefiGuest) -> None:
    folder = kept / "increment"
    guest.lose()
    assert not guest.outside(guest.variables).exists()
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(folder / "vda.raw")]
    subprocess.run([*argv, str(guest.outside(guest.disks["vda"]))], check=True)
    shutil.copy(folder / "vdb.raw", guest.outside(guest.disks["vdb"]))
    shutil.copy(folder / "nvram", guest.outside(guest.variables))
    guest.host.virsh("define", "/dev/stdin", input_text=(folder / "domain.xml").read_text())
    guest.start()
    assert guest.run(SUMS) == (kept / "expected").read_text()
    # It was its own entry among the variables that found the boot loader: there is none where firmware looks by itself.
    assert "debian" in guest.run("efibootmgr | grep $(efibootmgr | sed -n 's/BootCurrent: /Boot/p')")
    assert guest.run("ls /boot/efi/EFI").split() == ["debian"]


class Night:
    """A night of the guest, made by tar and sha256sum of what an image holds and a day's work on that."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self.data.mkdir(parents=True)
        disks = [(image / "vda.raw", "raw"), (image / "vdb.raw", "raw")]
        with contextlib.closing(appliance(disks, "reading the image", lambda _: None)) as handle:
            self.places = {"/": "/dev/sda2", "/boot/efi": "/dev/sda1", "/srv": "/dev/sdb"}
            self.uuids = {place: handle.vfs_uuid(device) for place, device in self.places.items()}
            self.types = {place: handle.vfs_type(device) for place, device in self.places.items()}
            for place, device in self.places.items():
                handle.mount_options("ro", device, place)
            handle.tar_out("/", str(folder / "night.tar"), numericowner=True, xattrs=True, acls=True)
        extract = ["tar", "-C", str(self.data), "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "-xpf"]
        subprocess.run([*extract, str(folder / "night.tar")], check=True)
        (folder / "night.tar").unlink()
        (self.data / "root/words").write_text("third\n")
        (self.data / "boot/efi/by-hand").write_text("on FAT\n")
        (self.data / "srv/random").unlink()
        subprocess.run(["setfacl", "-m", "u:1001:rw", str(self.data / "srv/words")], check=True)
        script = "find . -type f -printf '%P\\0' | xargs -0 sha256sum >../SHA256SUMS"
        subprocess.run(["bash", "-c", script], cwd=self.data, check=True)
        (folder / "facts.json").write_text(json.dumps({"made": "by the test"}))

    @property
    def facts(self) -> Facts:
        """Of which the runbook takes the file systems."""
        return facts(*(file_system(place, "", self.types[place], uuid) for place, uuid in self.uuids.items()))


def test_guest_comes_back_as_of_a_night_by_its_runbook(kept: Path, guest: UefiGuest, kvm_target: SshTarget) -> None:
    """Two disks, FAT, variables, no ssh and no tool in the guest: all that it needs happens before it starts."""
    image, night = kept / "increment", Night(kept / "increment", kept / "night")
    made = ImageManifest.model_validate_json((image / "manifest.json").read_bytes())
    sums = {f"{name}_sha256": sha256_file(night.folder / file) for name, file in LISTED.items()}
    guest.lose()
    runbook = Runbook(
        made=NIGHT,
        vm=guest.name,
        client=guest.name,
        xml=(image / "domain.xml").read_text(),
        store=str(kept),
        permanent="/nowhere",
        image=made,
        image_place=Place("STORE", "increment"),
        night=night_manifest(NIGHT, paths=tuple(night.places), **sums),
        night_name="overnight",
        night_place=Place("STORE", "night"),
        bringing=None,
        facts=night.facts,
        host=kvm_target,
        libvirt_uri="qemu:///system",
        image_folder="/var/lib/libvirt/images",
        guest=None,
    )
    done = by_hand.run(by_hand.decided(render(runbook), WORK=kept / "work"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LOOK" not in done.stderr
    assert "== Done. efi1 runs." in done.stdout
    guest.wait_until_up()
    found = guest.run("cat /root/words /srv/words /boot/efi/by-hand; ls /srv")
    assert found == "third\nsecond\non FAT\nlost+found\nwords\n"
    assert "debian" in guest.run("efibootmgr | grep $(efibootmgr | sed -n 's/BootCurrent: /Boot/p')")
    again = by_hand.run(by_hand.decided(render(runbook), WORK=kept / "again"))
    assert again.returncode == 1
    assert "FAILED: the KVM host has a VM of that name" in again.stderr


def test_guest_starts_from_the_store_with_its_own_variables_and_moves_or_goes(
    kept: Path, guest: UefiGuest, host: Host, shell: Shell, kvm_target: SshTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two disks at once; the firmware finds the loader by nothing but an entry of the guest's own."""
    image, store = kept / "increment", Store(kept / "store")
    monkeypatch.setattr(places, "store", lambda: store)
    monkeypatch.setattr(places, "kvm_host", lambda _: (kvm_target, SimpleNamespace(image_folder=FOLDER)))
    monkeypatch.setattr(places, "hypervisor", lambda _: contextlib.nullcontext((host, shell)))
    monkeypatch.setattr(places, "inventory", lambda: SimpleNamespace(kvm_hosts={"kvm1": None}, vms={}))
    guest.lose()
    made = ImageManifest.model_validate_json((image / "manifest.json").read_bytes())
    xml = (image / "domain.xml").read_text()
    original = Original(vm=guest.name, kvm_host="kvm1", xml=xml, image_folder=image, image=made)
    order = RecoveryOrder(kvm_host="kvm1")
    plan = on_overlays(recovery_assessment.plan.fn(original, order), made.disks)

    def start(run: str) -> InstantVm:
        rewritten = recovery_assessment.assess_at_once.fn(original, order, plan, run)
        started = instant.start.fn(instant.record_of.fn(original, plan, rewritten), plan.parts)
        guest.wait_until_up()
        return started

    instant.abandon.fn(start("run-1"))
    instant.forget.fn(instant.require(guest.name))
    files = {disk.overlay for disk in instant.record_of.fn(original, plan, Rewritten(xml, ())).disks}
    assert not [path for path in (*files, guest.variables) if guest.outside(path).exists()]
    record = start("run-2")
    assert "debian" in guest.run("efibootmgr | grep $(efibootmgr | sed -n 's/BootCurrent: /Boot/p')")
    moved, runs = instant.move.fn(record)
    instant.forget.fn(moved)
    assert runs
    assert guest.run(SUMS) == (kept / "expected").read_text()
    listed = host.domain(guest.name).xml()
    assert "nbd" not in listed
    assert all(path in listed for path in (*files, guest.variables))
    guest.host.virsh("destroy", guest.name)
    guest.start()
    assert guest.run(SUMS) == (kept / "expected").read_text()
