"""Which mount holds a path, whatever others are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.model.mountinfo import Mount, mount_of, parse_mounts

# Two real lines, then a store on NFSv4 (proc(5); optional fields as systemd makes them).
TEXT = r"""27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard,resv_strict
28 27 0:25 / /mnt/tools ro,nosuid - tmpfs tools ro,size=4k,mode=755
40 27 0:44 / /srv/gbs rw,relatime shared:123 master:4 - nfs4 nas:/export/gbs rw,vers=4.2,hard
41 40 0:45 / /srv/gbs/a\040b\011c\134d rw - nfs4 nas:/a\040b rw
42 27 0:46 / /srv/old rw - nfs4 nas:/old ro,vers=4.2
"""
HIDING = "50 27 254:1 / /srv/gbs rw - ext4 /dev/vdb rw\n"


def test_mounts_are_read_with_their_escapes() -> None:
    mounts = parse_mounts(TEXT)
    assert mounts[0] == Mount("/", "ext4", "/dev/vda", False, "/", "254:0", ("rw", "discard", "resv_strict"))
    assert mounts[2] == Mount("/srv/gbs", "nfs4", "nas:/export/gbs", False, "/", "0:44", ("rw", "vers=4.2", "hard"))
    assert mounts[3] == Mount("/srv/gbs/a b\tc\\d", "nfs4", "nas:/a b", False, "/", "0:45", ("rw",))


@pytest.mark.parametrize(("place", "read_only"), [("/mnt/tools", True), ("/srv/old", True), ("/srv/gbs", False)])
def test_read_only_mount_or_server_is_seen(place: str, read_only: bool) -> None:
    assert mount_of(place, parse_mounts(TEXT)).read_only is read_only


@pytest.mark.parametrize(
    ("path", "mountpoint"),
    [
        ("/", "/"),
        ("/srv", "/"),
        ("/srv/gbs", "/srv/gbs"),
        ("/srv/gbs/web1", "/srv/gbs"),
        ("/srv/gbsx", "/"),
        ("/srv/gbs/a b\tc\\d/x", "/srv/gbs/a b\tc\\d"),
    ],
)
def test_mount_of_path_is_the_deepest(path: str, mountpoint: str) -> None:
    assert mount_of(path, parse_mounts(TEXT)).mountpoint == mountpoint


def test_later_mount_hides_the_earlier_one() -> None:
    assert mount_of("/srv/gbs", parse_mounts(TEXT + HIDING)).fstype == "ext4"


@pytest.mark.parametrize("odd", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u00a0", "\u3000", "\r", "\udcff"])
def test_odd_character_in_somebodys_mount_point_does_not_hide_others(odd: str) -> None:
    """A USB stick named with a no-break space shifted the fields; one with a form feed broke every proof."""
    stick = f"60 27 8:1 / /media/u/My{odd}Disk ro - vfat /dev/sd{odd}a rw\n"
    mounts = parse_mounts(stick + TEXT)
    assert mounts[0] == Mount(f"/media/u/My{odd}Disk", "vfat", f"/dev/sd{odd}a", True, "/", "8:1", ("rw",))
    assert mounts[1:] == parse_mounts(TEXT)


def test_mount_without_a_source_is_read() -> None:
    assert parse_mounts("61 27 0:9 / /x rw - tmpfs  ro\n") == [Mount("/x", "tmpfs", "", True, "/", "0:9", ("ro",))]


def test_this_machines_mounts_are_read() -> None:
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text())
    assert mount_of("/", mounts).mountpoint == "/"
    assert {mount.mountpoint for mount in mounts} >= {"/proc"}
