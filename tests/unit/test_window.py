"""The plan of a snapshot window, the records of its journal, and which disks it takes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tasks.errors import UnsupportedDisk, WindowOpen
from tasks.model.domain_xml import Disk, Domain
from tasks.model.snapshot_xml import render_snapshot
from tasks.model.window import (
    PlannedDisk,
    Record,
    Step,
    WindowPlan,
    open_window_of,
    overlay_path,
    run_of_overlay,
    select_disks,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PLAN = WindowPlan(
    run="run-1",
    vm="-rf",
    uuid="5e2b1b3c-0000-0000-0000-000000000001",
    boot_id="b",
    xml="<domain/>",
    disks=(
        PlannedDisk(
            target="vda",
            base="/images/a;b $(id)<x>\"'.qcow2",
            format="qcow2",
            inode=1,
            overlay="/images/a;b $(id)<x>\"'.qcow2.gbs-run-1",
            virtual_size_bytes=1,
        ),
    ),
)


def record(step: Step, phase="done", target="", note="", plan=None) -> Record:
    return Record(at=NOW, step=step, phase=phase, target=target, note=note, plan=plan)


def vm(*disks: Disk) -> Domain:
    return Domain(name="vm", uuid="u", type="kvm", disks=disks)


def test_overlay_lies_beside_its_base_and_names_its_run() -> None:
    path = overlay_path("/images/a b.qcow2", "20260102T030405Z-1")
    assert path == "/images/a b.qcow2.gbs-20260102T030405Z-1"
    assert run_of_overlay(path) == "20260102T030405Z-1"
    assert run_of_overlay("/images/a\nb.raw.gbs-x") == "x"


@pytest.mark.parametrize(
    "path", [None, "", "/images/a.qcow2", "/images/a.gbs-", "/images/a.gbs-x.trash-1", "/a.gbs-x/b"]
)
def test_run_of_overlay_of_anything_else_is_none(path: str | None) -> None:
    assert run_of_overlay(path) is None


@pytest.mark.parametrize("run", ["", "../x", "a/b", "a b", "-rf", "x" * 65, "a\n", "ü"])
def test_overlay_path_refuses_a_run_id_that_is_no_name(run: str) -> None:
    with pytest.raises(ValueError, match="run id"):
        overlay_path("/images/a", run)


def test_overlay_path_refuses_a_name_that_gets_too_long() -> None:
    with pytest.raises(ValueError, match="too long"):
        overlay_path("/images/" + "é" * 115, "run-1")


def test_open_window_is_none_when_done_and_the_last_one_otherwise() -> None:
    prepare, done = record(Step.PREPARE, plan=PLAN), record(Step.DONE)
    assert open_window_of([]) is None
    assert open_window_of([prepare, done]) is None
    left = open_window_of(
        [prepare, record(Step.PIVOTED, target="vda"), done, prepare, record(Step.COMMIT, "intent", "vda")]
    )
    assert left is not None
    assert left.plan == PLAN
    assert left.reached(Step.COMMIT, "vda", "intent")
    assert not left.reached(Step.COMMIT, "vda", "done")
    assert not left.reached(Step.PIVOTED, "vda"), "what an earlier window did says nothing about this one"


def test_pending_is_an_intent_that_nothing_settled() -> None:
    freeze, thaw = record(Step.FREEZE, "intent"), record(Step.THAW)
    prepare = record(Step.PREPARE, plan=PLAN)

    def pending(*records: Record) -> bool:
        window = open_window_of([prepare, *records])
        assert window is not None
        return window.pending(Step.FREEZE, Step.THAW)

    assert not pending()
    assert pending(freeze)
    assert pending(freeze, record(Step.FREEZE), record(Step.THAW, "intent"))
    assert pending(freeze, record(Step.THAW, "failed"))
    assert not pending(freeze, thaw)
    assert pending(freeze, thaw, freeze)


def test_snapshot_definition_names_every_disk_and_escapes_hostile_paths() -> None:
    assert render_snapshot(PLAN, ["sda"]) == (
        '<domainsnapshot><name>gbs-run-1</name><disks><disk name="vda" snapshot="external" type="file">'
        '<driver type="qcow2" /><source file="/images/a;b $(id)&lt;x&gt;&quot;\'.qcow2.gbs-run-1" /></disk>'
        '<disk name="sda" snapshot="no" /></disks></domainsnapshot>'
    )


def test_select_disks_takes_writable_files_and_says_why_not_the_others() -> None:
    selection = select_disks(
        vm(
            Disk("vda", source="/a.qcow2", format="qcow2"),
            Disk("vdb", source="/b.raw", format="raw"),
            Disk("sda", device="cdrom", source="/x.iso", format="raw", readonly=True),
            Disk("sdb", device="cdrom"),
            Disk("vdc", source="/c", format="raw", readonly=True),
            Disk("vdd", source="/d", format="raw", shareable=True),
            Disk("vde", source="/e", format="raw", transient=True),
            Disk("vdf", type="network", source="pool/a", format="raw"),
            Disk("vdg", device="lun", type="block", source="/dev/sda", format="raw"),
            Disk("vdh", type="vhostuser", source="/run/x", format="raw"),
            Disk("vdi", type="block", source="/dev/vg/a", format="raw"),
            Disk("vdj", type="volume", source="pool/a", format="qcow2", backing=("/b",)),
        )
    )
    assert [disk.target for disk in selection.taken] == ["vda", "vdb", "vdi", "vdj"]
    why = {target: reason.split(":")[0] for target, reason in selection.left_out}
    assert why == {
        "sda": "it is a cdrom",
        "sdb": "it is a cdrom",
        "vdc": "it is read-only",
        "vdd": "it is shared with other VMs",
        "vde": "it is transient",
        "vdf": "it lies on the network (pool/a)",
        "vdg": "it is a LUN that is passed through",
        "vdh": "its source is of type 'vhostuser'",
    }


@pytest.mark.parametrize(
    ("disk", "reason"),
    [
        (Disk("vda", source="/a", format="vmdk"), "'vmdk'"),
        (Disk("vda", source="/a"), "None"),
        (Disk("vda", source="/a", format="qcow2", encrypted=True), "encrypted"),
        (Disk("vda", source="a", format="qcow2"), "absolute"),
    ],
)
def test_select_disks_refuses_what_cannot_be_taken(disk: Disk, reason: str) -> None:
    with pytest.raises(UnsupportedDisk, match=reason):
        select_disks(vm(Disk("vdz", source="/z", format="raw"), disk))


def test_select_disks_refuses_a_vm_without_writable_disks() -> None:
    with pytest.raises(UnsupportedDisk, match="no writable disk"):
        select_disks(vm(Disk("sda", device="cdrom")))


def test_select_disks_refuses_a_vm_on_an_overlay_of_ours() -> None:
    with pytest.raises(WindowOpen, match="run-9"):
        select_disks(vm(Disk("vda", source="/a.gbs-run-9", format="qcow2", backing=("/a",))))
