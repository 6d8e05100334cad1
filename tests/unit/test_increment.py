"""Increments: any doubt about a disk means that all of it is copied, and the reason is said."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tasks.errors import HypervisorError
from tasks.model.image_method import choose_method
from tasks.model.increment import DiskNow, checkpoint_name, plan_increment
from tasks.model.manifest import DiskRecord, FileRecord, ImageManifest
from tasks.model.window_decision import Power

NOW = datetime(2026, 11, 25, tzinfo=UTC)
SIZE = 1 << 30
VDA = DiskNow("vda", "/images/a.qcow2", SIZE, bitmaps=True)


def parent(**changes: object) -> ImageManifest:
    disk = DiskRecord(target="vda", file="vda.raw", format="raw", source="/images/a.qcow2", virtual_size_bytes=SIZE)
    files = (
        FileRecord(path="vda.raw", size_bytes=SIZE, chunks="vda.raw.chunks"),
        FileRecord(path="vda.raw.chunks", size_bytes=1, sha256="0" * 64),
    )
    image = ImageManifest(
        id="20261124T000000Z",
        vm="web1",
        uuid="u",
        kvm_host="kvm1",
        started=NOW,
        ended=NOW,
        instant=NOW,
        method="backup-api",
        method_reason="",
        consistency="crash",
        consistency_reason="",
        window_s=0,
        copy_s=0,
        frozen_s=0,
        checkpoint=checkpoint_name("20261124T000000Z"),
        disks=(disk,),
        files=files,
    )
    return image.model_copy(update=changes)


KNOWN = [parent().checkpoint or ""]


def test_disk_that_is_what_it_was_is_copied_by_its_changes() -> None:
    plan = plan_increment(parent(), [VDA], KNOWN)["vda"]
    assert (plan.since, plan.reason) == ("gbs-20261124T000000Z", "its changes since image 20261124T000000Z")


@pytest.mark.parametrize(
    ("image", "disk", "known", "full", "reason"),
    [
        (None, VDA, [], False, "there is no image to begin with"),
        (parent(), VDA, KNOWN, True, "a full copy was asked for"),
        (parent(checkpoint=None), VDA, KNOWN, False, "was taken without a checkpoint"),
        (
            parent(),
            VDA,
            ["gbs-other"],
            False,
            "libvirt does not know the checkpoint of image",
        ),
        (parent(), DiskNow("vda", VDA.source, SIZE, bitmaps=False), KNOWN, False, "its format cannot keep track"),
        (parent(), DiskNow("vdb", "/images/b", SIZE, bitmaps=True), KNOWN, False, "does not have it"),
        (parent(), DiskNow("vda", "/images/new", SIZE, bitmaps=True), KNOWN, False, "it lay in /images/a.qcow2 and"),
        (parent(), DiskNow("vda", VDA.source, 2 * SIZE, bitmaps=True), KNOWN, False, "it was resized from 1073741824"),
    ],
)
def test_disk_in_doubt_is_copied_whole_with_the_reason(image, disk, known, full, reason) -> None:
    plan = plan_increment(image, [disk], known, full=full)[disk.target]
    assert plan.since is None
    assert reason in plan.reason


def test_one_disk_in_doubt_leaves_the_others_their_increment() -> None:
    added = DiskNow("vdb", "/images/b", SIZE, bitmaps=True)
    plans = plan_increment(parent(), [VDA, added], KNOWN)
    assert (plans["vda"].since, plans["vdb"].since) == ("gbs-20261124T000000Z", None)


@pytest.mark.parametrize(
    ("power", "wanted", "why_not", "method", "reason"),
    [
        (Power.ON, "auto", None, "backup-api", "a trial showed that its host has it"),
        (Power.ON, "auto", "too old", "snaplive", "the backup API cannot be used: too old"),
        (Power.ON, "snaplive", None, "snaplive", "it was asked for"),
        (Power.ON, "backup-api", None, "backup-api", "it was asked for"),
        (Power.OFF, "auto", None, "offline", "the VM is shut off"),
        (Power.OFF, "offline", None, "offline", "the VM is shut off"),
    ],
)
def test_method_is_what_state_and_host_allow(power, wanted, why_not, method, reason) -> None:
    choice = choose_method("web1", power, wanted, why_not)
    assert choice.method == method
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("power", "wanted", "why_not", "says"),
    [
        (Power.ON, "backup-api", "too old", "an image by backup-api failed: too old"),
        (Power.ON, "offline", None, "the VM runs; shut it down first"),
        (Power.OFF, "backup-api", None, "the VM is shut off; start it"),
        (Power.OFF, "snaplive", None, "the VM is shut off; start it"),
        (Power.ABSENT, "auto", None, "not defined"),
        (Power.CHANGING, "auto", None, "shutting down"),
    ],
)
def test_method_that_cannot_be_had_is_refused(power, wanted, why_not, says) -> None:
    with pytest.raises(HypervisorError, match=says):
        choose_method("web1", power, wanted, why_not)
