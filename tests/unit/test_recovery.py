"""Where the disks of a VM go when it is brought back, and in which format."""

import pytest

from tasks.model.manifest import DiskRecord
from tasks.model.recovery import place_of, working_disks
from tests.unit.records import pulled_image


def record(**more: object) -> DiskRecord:
    common = {"target": "vda", "file": "vda.raw", "format": "raw", "source": "/data/web1.qcow2"}
    return DiskRecord.model_validate({**common, "virtual_size_bytes": 1, **more})


@pytest.mark.parametrize(
    ("kind", "same_host", "place"),
    [
        ("file", True, "/data/web1.qcow2"),
        ("file", False, "/images/web1.qcow2"),
        ("block", True, "/images/web-1-vda.raw"),
        ("block", False, "/images/web-1-vda.raw"),
    ],
)
def test_disk_goes_back_to_its_file_and_never_to_a_device(kind: str, same_host: bool, place: str) -> None:
    assert place_of(record(source_kind=kind), "web-1", "/images", same_host=same_host) == place


def test_working_copy_has_the_format_that_the_disk_had_on_its_host() -> None:
    image = pulled_image(disks=(record(source_format="qcow2", options=("cluster_size=131072",)),))
    (disk,) = working_disks(image)
    assert (disk.format, disk.file, disk.options) == ("qcow2", "vda.qcow2", ("cluster_size=131072",))
