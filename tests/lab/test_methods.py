"""Every method on every kind of disk: images of one instant, definitions as they were, guests that run as they ran.

Judged by virsh, qemu-img, du and the numbered log that the guest keeps writing on all of its disks.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tasks.drivers import backup_api, live_image, offline_image, vm_parts
from tasks.drivers.host_shell import HostShell
from tasks.drivers.image_order import Order
from tasks.drivers.journal import Journal
from tasks.drivers.libvirt_host import Host
from tasks.drivers.snaplive_settle import close_window, reconcile
from tasks.drivers.space_watch import SpaceWatch
from tasks.drivers.ssh import Shell
from tasks.errors import HypervisorError, IntegrityError, UnsupportedDisk, WindowOpen
from tasks.model.image_method import Wishes
from tasks.model.image_taken import Taken
from tasks.model.ssh_target import SshTarget
from tasks.model.window_budget import Budget
from tasks.model.window_decision import Action
from tests.lab.kvm_host import KvmHost
from tests.lab.mixed_guest import FOLDER, MixedGuest
from tests.lab.snaplive_guest import Guests, assert_on_base, journal_of, opened
from tests.lab.tiny_guest import TinyGuest, last_record, make_disk
from tests.lab.window_child import ChildTask, host_pid, reach, run_child

WISHES = Wishes(min_free_bytes=1 << 20, shutdown_deadline_s=60)
Take = Callable[[Order], Taken]


METHODS = pytest.mark.parametrize(
    "method", [live_image.take, offline_image.take, backup_api.take], ids=["snaplive", "offline", "backup-api"]
)


class Bench:
    """A guest, and how images of it are taken."""

    def __init__(self, host: Host, shell: HostShell, target: SshTarget, folder: Path) -> None:
        self.host, self.shell, self.target, self.folder = host, shell, target, folder
        self.count = 0

    def journal(self, guest: TinyGuest) -> Journal:
        return journal_of(self.host, self.folder / "journal", guest)

    def take(self, method: Take, guest: TinyGuest, wishes: Wishes = WISHES) -> tuple[Path, Taken]:
        self.count += 1
        folder = self.folder / f"image-{self.count}"
        folder.mkdir(parents=True)
        uuid = self.host.domain(guest.name).uuid
        order = Order(
            self.host, self.shell, self.target, self.journal(guest), uuid, f"image-{self.count}", folder, wishes
        )
        taken = method(order)
        return folder, taken


@pytest.fixture
def bench(host: Host, shell: Shell, kvm_target: SshTarget, folder: Path) -> Bench:
    return Bench(host, shell, kvm_target, folder)


@pytest.fixture(scope="module")
def mixed(kvm_host: KvmHost) -> Iterator[MixedGuest]:
    """A running guest with a disk of each kind; each test leaves it running on its own disks."""
    guest = MixedGuest(kvm_host, "mixed")
    guest.start()
    guest.wait_for_record(20)
    yield guest
    guest.destroy()


def stored(guest: TinyGuest) -> str:
    return guest.host.virsh("dumpxml", "--inactive", guest.name)


def assert_as_before(guest: TinyGuest, definition: str) -> None:
    """It runs, writes, and has the definition that it had; nothing of ours is left on its host."""
    assert stored(guest) == definition
    assert guest.host.virsh("domstate", guest.name).strip() == "running"
    assert ".gbs-" not in guest.host.virsh("domblklist", guest.name)
    left = guest.host.run(
        ["sh", "-c", f"ls -d {FOLDER}/*.gbs-* /run/gbs-* 2>/dev/null; pgrep -a qemu-nbd"], check=False
    )
    assert left.stdout == ""
    disk = guest.disks[0]
    guest.wait_for_record(last_record(guest.outside(disk.path), disk.format) + 20)


def records_of(folder: Path, taken: Taken) -> list[int]:
    """The last record on each disk of an image, which are of one instant."""
    records = [last_record(folder / disk.file, "raw") for disk in taken.disks]
    assert max(records) - min(records) <= 1, records
    assert records == sorted(records, reverse=True)
    return records


@METHODS
def test_image_holds_every_kind_of_disk_as_of_one_instant(bench: Bench, mixed: MixedGuest, method: Take) -> None:
    definition = stored(mixed)
    before = last_record(mixed.outside(mixed.disks[0].path), "qcow2")
    folder, taken = bench.take(method, mixed)
    assert [disk.target for disk in taken.disks] == ["vda", "vdb", "vdc"]
    assert [(disk.source_kind, disk.volume) for disk in taken.disks] == [
        ("file", ""),
        ("block", ""),
        ("file", "mixed-pool/mixed-vdc.qcow2"),
    ]
    assert "cluster_size=131072" in taken.disks[0].options
    assert records_of(folder, taken)[0] >= before
    assert_as_before(mixed, definition)
    used = [(folder / disk.file).stat().st_blocks * 512 for disk in taken.disks]
    assert max(used) < 8 << 20, "a disk of 64 MiB with 4 MiB of data takes more than that"
    assert (folder / "vda.raw").stat().st_size == 64 << 20


@pytest.mark.parametrize("method", [live_image.take, backup_api.take], ids=["snaplive", "backup-api"])
def test_image_of_a_paused_guest_equals_its_disks(bench: Bench, mixed: MixedGuest, method: Take) -> None:
    mixed.host.virsh("suspend", mixed.name)
    try:
        folder, taken = bench.take(method, mixed)
        assert taken.consistency_reason == "the VM is paused"
        for disk in mixed.disks:
            argv = ["qemu-img", "compare", "-U", "-f", "raw", "-F", disk.format, str(folder / f"{disk.target}.raw")]
            subprocess.run([*argv, str(mixed.outside(disk.path))], check=True)
        assert mixed.host.virsh("domstate", mixed.name).strip() == "paused"
    finally:
        mixed.host.virsh("resume", mixed.name)


def test_offline_image_equals_the_disks_of_a_guest_that_is_off(bench: Bench, guests: Guests) -> None:
    guest = guests(disk_count=2)
    guest.host.virsh("shutdown", guest.name)
    while guest.host.virsh("domstate", guest.name).strip() != "shut off":
        time.sleep(0.1)
    folder, taken = bench.take(offline_image.take, guest)
    for disk in guest.disks:
        argv = ["qemu-img", "compare", "-f", "raw", "-F", disk.format, str(folder / f"{disk.target}.raw")]
        subprocess.run([*argv, str(guest.outside(disk.path))], check=True)
    assert (taken.consistency, taken.consistency_reason) == ("file-system", "the guest was shut off")
    assert_on_base(guest, "shut off")


def test_guest_whose_memory_was_saved_is_only_crash_consistent(bench: Bench, guests: Guests) -> None:
    guest = guests()
    guest.host.virsh("managedsave", guest.name)
    _, taken = bench.take(offline_image.take, guest)
    assert taken.consistency == "crash"
    assert "its memory was saved" in taken.consistency_reason


@pytest.mark.parametrize("state", ["destroyed", "running"])
def test_window_on_every_kind_of_disk_is_closed_after_a_crash(bench: Bench, mixed: MixedGuest, state: str) -> None:
    definition = stored(mixed)
    opened(bench.host, bench.shell, bench.journal(mixed), mixed)
    time.sleep(0.5)
    if state == "destroyed":
        mixed.host.virsh("destroy", mixed.name)
    outcomes = close_window(bench.host, bench.shell, bench.journal(mixed))
    assert [(outcome.action, outcome.settled) for outcome in outcomes] == [(Action.UNLINK, True)] * 3
    assert stored(mixed) == definition
    if state == "destroyed":
        mixed.host.virsh("start", mixed.name)
    assert_as_before(mixed, definition)


@pytest.mark.parametrize(
    "kill_at",
    [("COPY", "done", "vdb"), ("PIVOT", "intent", "vdb"), ("PIVOTED", "done", "vdb"), ("UNLINK", "done", "vdc")],
)
def test_window_on_every_kind_of_disk_killed_is_reconciled(mixed: MixedGuest, folder: Path, kill_at) -> None:
    definition, journal = stored(mixed), folder / "kvm1" / "vm.jsonl"
    task = ChildTask(host_pid(mixed.host), mixed.name, "killed", str(journal), kill_at=(*kill_at, "after"))
    assert run_child(task).returncode == -9
    with reach(host_pid(mixed.host)) as (host, shell):
        assert all(outcome.settled for outcome in reconcile(host, shell, Journal(journal)))
    for path in Path("/dev").glob("loop*.copy"):
        path.unlink()
    for path in mixed.host.images.glob("*.copy"):
        path.unlink()
    assert_as_before(mixed, definition)


def test_offline_image_of_a_running_guest_shuts_it_down_and_starts_it_again(bench: Bench, guests: Guests) -> None:
    guest = guests(disk_count=2)
    definition = stored(guest)
    folder, taken = bench.take(offline_image.take, guest)
    records_of(folder, taken)
    assert (taken.consistency, taken.consistency_reason) == ("file-system", "it was shut down by ACPI")
    assert bench.journal(guest).open_window() is None
    assert_as_before(guest, definition)


def test_guest_that_does_not_shut_down_is_left_running_and_started_if_it_goes_later(
    bench: Bench, kvm_host: KvmHost
) -> None:
    guest = TinyGuest(kvm_host, "deaf", writes=False)
    guest.start()
    try:
        with pytest.raises(HypervisorError, match="the guest was not off after 1 s"):
            bench.take(offline_image.take, guest, Wishes(min_free_bytes=1, shutdown_deadline_s=1))
        assert guest.host.virsh("domstate", guest.name).strip() == "running"
        with pytest.raises(WindowOpen, match="gbs reconcile"):
            bench.take(offline_image.take, guest)
        (waiting,) = reconcile(bench.host, bench.shell, bench.journal(guest))
        assert not waiting.settled
        assert "may still do so" in waiting.reason
        guest.host.virsh("destroy", guest.name)
        (started,) = reconcile(bench.host, bench.shell, bench.journal(guest))
        assert (started.action, started.settled) == (Action.START, True)
        assert guest.host.virsh("domstate", guest.name).strip() == "running"
        assert bench.journal(guest).open_window() is None
    finally:
        guest.destroy()


def test_guest_that_does_not_shut_down_loses_its_power_if_the_policy_says_so(bench: Bench, kvm_host: KvmHost) -> None:
    guest = TinyGuest(kvm_host, "forced", writes=False)
    guest.start()
    try:
        wishes = Wishes(min_free_bytes=1, shutdown_deadline_s=1, force_shutdown=True)
        _, taken = bench.take(offline_image.take, guest, wishes)
        assert taken.consistency == "crash"
        assert guest.host.virsh("domstate", guest.name).strip() == "running"
    finally:
        guest.destroy()


@pytest.mark.parametrize(
    "kill_at",
    [
        ("PREPARE", "done", "", "after"),
        ("SHUTDOWN", "done", "", "before"),
        ("SHUTDOWN", "done", "", "after"),
        ("START", "intent", "", "after"),
        ("START", "done", "", "before"),
    ],
    ids=lambda kill_at: "-".join(filter(None, kill_at)),
)
def test_offline_copy_killed_leaves_a_guest_that_is_started_again(guests: Guests, folder: Path, kill_at) -> None:
    guest = guests()
    journal = folder / "kvm1" / "vm.jsonl"
    task = ChildTask(host_pid(guest.host), guest.name, "killed", str(journal), verb="off", kill_at=kill_at)
    assert run_child(task).returncode == -9
    with reach(host_pid(guest.host)) as (host, shell):
        assert all(outcome.settled for outcome in reconcile(host, shell, Journal(journal)))
    assert Journal(journal).open_window() is None
    assert_on_base(guest)


def test_copy_that_would_take_too_long_is_refused_before_the_window(bench: Bench, guests: Guests) -> None:
    guest = guests()
    wishes = Wishes(min_free_bytes=1 << 20, max_window_s=60, bytes_per_s=1000)
    with pytest.raises(HypervisorError, match=r"max_window_s of its policy allows 0\.0 h"):
        bench.take(live_image.take, guest, wishes)
    assert bench.journal(guest).records() == []
    assert_on_base(guest)


def test_copy_that_takes_too_long_is_given_up_and_the_window_closed(
    bench: Bench, full_guest: TinyGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_image, "SpaceWatch", partial(SpaceWatch, every_s=0.5))
    before = last_record(full_guest.outside(full_guest.disks[0].path), "qcow2")
    wishes = Wishes(min_free_bytes=1 << 20, max_window_s=2, bytes_per_s=1 << 20)
    monkeypatch.setattr(live_image, "expect", lambda *_: Budget(1, 0))
    with pytest.raises(HypervisorError, match="it lasts longer than the policy's max_window_s"):
        bench.take(live_image.take, full_guest, wishes)
    assert bench.journal(full_guest).open_window() is None
    assert_on_base(full_guest)
    assert full_guest.wait_for_record(before + 20)


@pytest.fixture
def full_guest(kvm_host: KvmHost) -> Iterator[TinyGuest]:
    """A running guest with 12 MiB on its disk that are not zero, in several chunks."""
    guest = TinyGuest(kvm_host, "full")
    guest.define()
    image = str(guest.outside(guest.disks[0].path))
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 9 20M 12M", image], check=True, capture_output=True)
    guest.start()
    yield guest
    guest.destroy()


@pytest.mark.parametrize("method", [live_image.take, backup_api.take], ids=["snaplive", "backup-api"])
def test_bandwidth_limit_holds(bench: Bench, full_guest: TinyGuest, method: Take) -> None:
    _, taken = bench.take(method, full_guest, Wishes(min_free_bytes=1 << 20, bytes_per_s=4 << 20))
    # The last chunk is waited for, not after: 4 MiB of 12 may come at once.
    assert taken.bytes_moved >= 12 << 20
    assert (taken.bytes_moved - (4 << 20)) / taken.copy_s < 4 << 20


def test_snapshot_after_a_backup_takes_its_checkpoint_away(bench: Bench, guests: Guests) -> None:
    guest = guests()
    bench.take(backup_api.take, guest)
    assert guest.host.virsh("checkpoint-list", guest.name, "--name").strip()
    bench.take(live_image.take, guest)
    assert guest.host.virsh("checkpoint-list", guest.name, "--name").strip() == ""
    assert_on_base(guest)


@METHODS
def test_hostile_name_is_only_data(bench: Bench, kvm_host: KvmHost, method: Take) -> None:
    guest = TinyGuest(kvm_host, """-x it's "a" $(id);`b` <c>&d %h""", disk_count=2)
    define = guest.domain_xml()
    for disk in guest.disks:
        make_disk(guest.outside(disk.path), disk.format, disk.size_bytes, writes=True)
    kvm_host.virsh("define", "/dev/stdin", input_text=define)
    uuid = bench.host.domain(guest.name).uuid
    kvm_host.virsh("start", uuid)
    try:
        guest.wait_for_record(20)
        folder, taken = bench.take(method, guest)
        records_of(folder, taken)
        assert kvm_host.virsh("domstate", uuid).strip() == "running"
        assert ".gbs-" not in kvm_host.virsh("domblklist", uuid)
        assert len(list(kvm_host.images.glob("-x it*"))) == 2
    finally:
        kvm_host.run(["virsh", "-q", "destroy", uuid], check=False)
        kvm_host.run(["virsh", "-q", "undefine", uuid, "--checkpoints-metadata"], check=False)
        for disk in guest.disks:
            guest.outside(disk.path).unlink()


def test_image_keeps_what_makes_the_vm_besides_its_disks(bench: Bench, kvm_host: KvmHost) -> None:
    """The definitions are libvirt's; what its files hold is made up, as the VM is never started."""
    guest = TinyGuest(kvm_host, "parts")
    guest.define()
    secret, uuid = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f", bench.host.domain(guest.name).uuid
    root, made = kvm_host.directory / "root", {"nvram": "vars", "kernel": "linux", "initrd": "early"}
    for name, content in made.items():
        (kvm_host.images / f"parts-{name}").write_text(content)
    state = root / f"var/lib/libvirt/swtpm/{uuid}/tpm2/tpm2-00.permall"
    state.parent.mkdir(parents=True)
    state.write_text("state")
    xml = guest.domain_xml().replace("<name>", f"<uuid>{uuid}</uuid><name>", 1)
    os_parts = "".join(f"<{name}>{FOLDER}/parts-{name}</{name}>" for name in ("kernel", "initrd"))
    loader = "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>"
    xml = xml.replace("</os>", f"{os_parts}{loader}<nvram>{FOLDER}/parts-nvram</nvram></os>")
    tpm = f"<tpm><backend type='emulator' version='2.0'><encryption secret='{secret}'/></backend></tpm>"
    card = "<interface type='network'><source network='lan'/></interface>"
    try:
        usage = "<usage type='vtpm'><name>key of parts</name></usage>"
        kvm_host.virsh("secret-define", "/dev/stdin", input_text=f"<secret><uuid>{secret}</uuid>{usage}</secret>")
        network = "<network><name>lan</name><bridge name='lan0'/></network>"
        kvm_host.virsh("net-define", "/dev/stdin", input_text=network)
        kvm_host.virsh("define", "/dev/stdin", input_text=xml.replace("</devices>", f"{card}{tpm}</devices>"))
        kvm_host.virsh("autostart", guest.name)
        bench.folder.mkdir()
        domain = bench.host.domain(guest.name)
        parts = vm_parts.capture(bench.host, bench.shell, bench.target, domain, bench.folder)
        assert (parts.autostart, parts.live_definition, parts.warnings) == (True, None, ())
        assert {role: (bench.folder / file).read_text() for role, file in parts.files.items()} == made
        assert parts.sources["nvram"] == f"{FOLDER}/parts-nvram"
        assert parts.secrets == ("vtpm key of parts",)
        assert "<name>lan</name>" in (bench.folder / parts.networks["lan"]).read_text()
        assert parts.tpm_state is not None
        listing = subprocess.run(["tar", "-tf", str(bench.folder / parts.tpm_state)], capture_output=True, check=True)
        assert f"{uuid}/tpm2/tpm2-00.permall" in listing.stdout.decode().splitlines()
        assert (bench.folder / "domain.xml").read_text().strip() == stored(guest).strip()
        (kvm_host.images / "parts-initrd").unlink()
        state.unlink()
        shutil.rmtree(state.parents[1])
        lacking = vm_parts.capture(bench.host, bench.shell, bench.target, domain, bench.folder)
        assert [words.split(" is not")[0] for words in lacking.warnings] == [
            f"its initrd {FOLDER}/parts-initrd",
            "the state of its TPM",
        ]
    finally:
        kvm_host.run(["virsh", "-q", "undefine", guest.name, "--nvram"], check=False)
        for verb in (["net-undefine", "lan"], ["secret-undefine", secret]):
            kvm_host.run(["virsh", "-q", *verb], check=False)
        for path in kvm_host.images.glob("parts-*"):
            path.unlink()


def test_image_of_a_uefi_guest_with_a_tpm_keeps_both(bench: Bench, kvm_host: KvmHost) -> None:
    """Real UEFI variables and a real TPM, as libvirt made them when the guest was started."""
    guest = TinyGuest(kvm_host, "uefi")
    for disk in guest.disks:
        make_disk(guest.outside(disk.path), disk.format, disk.size_bytes, writes=False)
    xml = guest.domain_xml().replace("machine='pc'", "machine='q35'").replace("<os>", "<os firmware='efi'>")
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    kvm_host.virsh("define", "/dev/stdin", input_text=xml.replace("</devices>", f"{tpm}</devices>"))
    try:
        kvm_host.virsh("start", guest.name)
        bench.folder.mkdir()
        domain = bench.host.domain(guest.name)
        parts = vm_parts.capture(bench.host, bench.shell, bench.target, domain, bench.folder)
        assert parts.warnings == ()
        assert parts.live_definition == "live.xml"
        kvm_host.virsh("destroy", guest.name)
        variables = kvm_host.directory / "root" / parts.sources["nvram"].lstrip("/")
        assert (bench.folder / parts.files["nvram"]).stat().st_size == variables.stat().st_size > 500_000
        assert parts.tpm_state is not None
        argv = ["tar", "-tf", str(bench.folder / parts.tpm_state)]
        listing = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert f"{domain.uuid}/tpm2/tpm2-00.permall" in listing.splitlines()
    finally:
        kvm_host.run(["virsh", "-q", "destroy", guest.name], check=False)
        kvm_host.run(["virsh", "-q", "undefine", guest.name, "--nvram", "--tpm"], check=False)
        for disk in guest.disks:
            guest.outside(disk.path).unlink()


def test_unsound_qcow2_is_refused(bench: Bench, kvm_host: KvmHost) -> None:
    guest = TinyGuest(kvm_host, "unsound")
    guest.define()
    try:
        with guest.outside(guest.disks[0].path).open("r+b") as file:
            file.seek(2 << 16)  # the first refcount block: clusters in use are called free
            file.write(bytes(512))
        with pytest.raises(IntegrityError, match="an image that qemu-img check finds sound"):
            bench.take(offline_image.take, guest)
    finally:
        guest.destroy()


def test_backing_file_whose_format_is_not_stated_is_refused(bench: Bench, kvm_host: KvmHost) -> None:
    guest = TinyGuest(kvm_host, "unstated")
    guest.define()
    path = guest.outside(guest.disks[0].path)
    base = path.with_name("unstated-base.raw")
    try:
        path.rename(base)
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base.name, str(path)]
        subprocess.run(argv, check=True)
        # Old versions wrote no format; this one refuses to. The header extension that names it becomes an unknown one.
        header = path.read_bytes()[:4096].replace(bytes.fromhex("e2792aca"), bytes.fromhex("12345678"))
        with path.open("r+b") as file:
            file.write(header)
        with pytest.raises(UnsupportedDisk, match="its format is not stated"):
            bench.take(offline_image.take, guest)
    finally:
        base.unlink(missing_ok=True)
        guest.destroy()
