"""Increments: any doubt about a disk means that all of it is copied, and the reason is said."""

from __future__ import annotations

import pytest

from tasks.errors import HypervisorError
from tasks.model.image_method import choose_method
from tasks.model.increment import DiskNow, plan_increment
from tasks.model.window_decision import Power
from tests.unit.records import pulled_image

SIZE = 1 << 30
VDA = DiskNow("vda", "/images/a.qcow2", SIZE, bitmaps=True)


KNOWN = [pulled_image().checkpoint or ""]


def test_disk_that_is_what_it_was_is_copied_by_its_changes() -> None:
    plan = plan_increment(pulled_image(), [VDA], KNOWN)["vda"]
    assert (plan.since, plan.reason) == ("gbs-20261124T000000Z", "its changes since image 20261124T000000Z")


@pytest.mark.parametrize(
    ("image", "disk", "known", "full", "reason"),
    [
        (None, VDA, [], False, "there is no image to begin with"),
        (pulled_image(), VDA, KNOWN, True, "a full copy was asked for"),
        (pulled_image(checkpoint=None), VDA, KNOWN, False, "was taken without a checkpoint"),
        (
            pulled_image(),
            VDA,
            ["gbs-other"],
            False,
            "libvirt does not know the checkpoint of image",
        ),
        (pulled_image(), DiskNow("vda", VDA.source, SIZE, bitmaps=False), KNOWN, False, "its format cannot keep track"),
        (pulled_image(), DiskNow("vdb", "/images/b", SIZE, bitmaps=True), KNOWN, False, "does not have it"),
        (
            pulled_image(),
            DiskNow("vda", "/images/new", SIZE, bitmaps=True),
            KNOWN,
            False,
            "it lay in /images/a.qcow2",
        ),
        (
            pulled_image(),
            DiskNow("vda", VDA.source, 2 * SIZE, bitmaps=True),
            KNOWN,
            False,
            "it was resized from",
        ),
    ],
)
def test_disk_in_doubt_is_copied_whole_with_the_reason(image, disk, known, full, reason) -> None:
    plan = plan_increment(image, [disk], known, full=full)[disk.target]
    assert plan.since is None
    assert reason in plan.reason


def test_one_disk_in_doubt_leaves_the_others_their_increment() -> None:
    added = DiskNow("vdb", "/images/b", SIZE, bitmaps=True)
    plans = plan_increment(pulled_image(), [VDA, added], KNOWN)
    assert (plans["vda"].since, plans["vdb"].since) == ("gbs-20261124T000000Z", None)


@pytest.mark.parametrize(
    ("power", "wanted", "why_not", "method", "reason"),
    [
        (Power.ON, "auto", None, "backup-api", "a trial showed that its host has it"),
        (Power.ON, "auto", "too old", "snaplive", "the backup API cannot be used: too old"),
        (Power.ON, "snaplive", None, "snaplive", "it was asked for"),
        (Power.ON, "backup-api", None, "backup-api", "it was asked for"),
        (Power.ON, "offline", None, "offline", "the VM is shut down for the copy and started again"),
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
        (Power.OFF, "backup-api", None, "the VM is shut off; start it"),
        (Power.OFF, "snaplive", None, "the VM is shut off; start it"),
        (Power.ABSENT, "auto", None, "not defined"),
        (Power.CHANGING, "auto", None, "shutting down"),
    ],
)
def test_method_that_cannot_be_had_is_refused(power, wanted, why_not, says) -> None:
    with pytest.raises(HypervisorError, match=says):
        choose_method("web1", power, wanted, why_not)
