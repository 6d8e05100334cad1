"""What an update of an image mounts and leaves alone, and what a night's files name that an image must have."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tasks.drivers import source_tree
from tasks.errors import SourceRefused
from tasks.model.boot_names import kernels, known_names, missing, parse_blkid, uses_selinux
from tasks.model.facts import Facts
from tasks.model.image_update import (
    MountedBy,
    coarse_rules,
    nested_places,
    place_of_path,
    tree_rules,
    update_plan,
)
from tests.unit.records import NIGHT, night_manifest

ROOT = MountedBy("/", "b", "btrfs", "/@")
HOME = MountedBy("/home", "b", "btrfs", "/@home")
EFI = MountedBy("/boot/efi", "1A2B-3C4D", "vfat")


def facts(*rows: tuple[str, str, str, str], binds: tuple[str, ...] = ()) -> Facts:
    keys = ("mountpoint", "source", "fstype", "uuid")
    values: dict[str, Any] = {
        **dict.fromkeys(("hostname", "os_id", "os_version", "os_name", "kernel", "architecture", "machine_id"), ""),
        "collected": NIGHT,
        "boot_mode": "uefi",
        "block_devices": (),
        "bind_mounts": binds,
        "file_systems": [{**dict(zip(keys, row, strict=True)), "size_bytes": 1, "used_bytes": 1} for row in rows],
    }
    return Facts.model_validate(values)


def test_plan_mounts_each_subvolume_once_and_leaves_alone_what_lies_elsewhere() -> None:
    found = facts(
        ("/", "/dev/vda2[/@]", "btrfs", "b"),
        ("/home", "/dev/vda2[/@home]", "btrfs", "b"),
        ("/mnt/again[1]", "/dev/vda2[/@home]", "btrfs", "b"),
        ("/boot/efi", "/dev/vda1", "vfat", "1A2B-3C4D"),
        ("/not/pulled", "/dev/vdb", "ext4", "x"),
        ("/part", "/dev/vdc[/only]", "xfs", "y"),
        binds=("/srv/www",),
    )
    paths = ("/", "/home", "/boot/efi", "/mnt/again[1]", "/part")
    plan = update_plan(found, night_manifest(paths=paths, excluded=("/proc/*", "*.tmp", "- cache/")))
    assert plan.mounts == (ROOT, HOME, EFI)
    assert set(plan.keep) >= {"/proc/*", "/srv/www/*", "/mnt/again\\[1]/*", "/home/lost+found", "/boot/grub/i386-pc/"}
    assert "/part/*" in plan.keep
    assert plan.warnings == ("/part is left as the image has it: only /only of its file system was mounted there",)
    assert "*.tmp" in plan.keep


def test_subvolumes_that_nobody_mounts_are_protected_where_they_show() -> None:
    subvolumes = ["@", "@home", "@home/.snapshots", "@/var/lib/machines", "@2"]
    assert nested_places(ROOT, (ROOT, HOME), subvolumes) == ["/var/lib/machines"]
    assert nested_places(HOME, (ROOT, HOME), subvolumes) == ["/home/.snapshots"]
    top = MountedBy("/", "b", "btrfs", "/")
    assert nested_places(top, (top, MountedBy("/home", "b", "btrfs", "/home")), ["home", "snap"]) == ["/snap"]


def test_rules_send_by_rsync_itself_what_they_say(tmp_path: Path) -> None:
    """Both passes together make the night of the image, but for what is kept: rsync(1) is the judge."""
    night, image = tmp_path / "night", tmp_path / "image"
    for root, word in ((night, "night"), (image, "image")):
        for path in ("etc/a", "boot/b", "boot/efi/EFI/debian/c", "proc/d", f"only-{word}", f"boot/efi/only-{word}"):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(f"{word} {path}")
    (image / "nested/sub").mkdir(parents=True)
    (image / "nested/sub/own").touch()
    mounts = [ROOT, EFI]
    for name, rules in (
        ("tree", tree_rules(mounts, ["/proc/*"], ["/nested/sub"])),
        ("coarse", coarse_rules(mounts, ())),
    ):
        (tmp_path / name).write_bytes(b"".join(rule.encode() + b"\0" for rule in rules))
        command = ["rsync", "-rI", "--delete", "--from0", f"--filter=. {tmp_path / name}", f"{night}/", f"{image}/"]
        subprocess.run(command, check=True)
        here = (image / "boot/efi/EFI/debian/c").read_text()
        assert here.startswith("image" if name == "tree" else "night")
    assert (image / "proc/d").read_text() == "image proc/d"
    found = {str(path.relative_to(image)) for path in image.rglob("*") if path.is_file()}
    wanted = {str(path.relative_to(night)) for path in night.rglob("*") if path.is_file()}
    assert found == wanted | {"nested/sub/own"}


def _both_passes(folder: Path, mounts: list[MountedBy], keep: list[str], nested: list[str]) -> None:
    """Make `image` of `night`, by rsync itself."""
    for rules in (tree_rules(mounts, keep, nested), coarse_rules(mounts, keep)):
        (folder / "rules").write_bytes(b"".join(rule.encode() + b"\0" for rule in rules))
        command = ["rsync", "-rI", "--delete", "--from0", f"--filter=. {folder / 'rules'}"]
        subprocess.run([*command, f"{folder}/night/", f"{folder}/image/"], check=True)


def _files(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()


def test_what_a_night_leaves_out_anywhere_is_not_deleted(tmp_path: Path) -> None:
    kept = ["home/a/cache/b", "home/a.tmp", "boot/efi/EFI/a.tmp", "srv/deep/x", "srv/old/c"]
    _files(tmp_path / "night", "home/new", "boot/efi/EFI/new")
    _files(tmp_path / "image", *kept, "home/gone", "boot/efi/EFI/gone", "srv/deep/y")
    excluded = ("*.tmp", "cache/", "deep/x", "- /srv/old", "*/lost+found")
    plan = update_plan(facts(("/", "/dev/a", "ext4", "a")), night_manifest(paths=("/",), excluded=excluded))
    _both_passes(tmp_path, [ROOT, EFI], list(plan.keep), [])
    found = {str(path.relative_to(tmp_path / "image")) for path in (tmp_path / "image").rglob("*") if path.is_file()}
    assert found == {*kept, "home/new", "boot/efi/EFI/new"}


def test_efi_partition_that_a_night_has_nothing_of_keeps_what_it_holds(tmp_path: Path) -> None:
    _files(tmp_path / "night", "etc/a")
    _files(tmp_path / "image", "boot/efi/EFI/debian/grub.cfg", "boot/gone")
    _both_passes(tmp_path, [ROOT, EFI], [], [])
    assert (tmp_path / "image/boot/efi/EFI/debian/grub.cfg").exists()
    assert not (tmp_path / "image/boot/gone").exists()


@pytest.mark.parametrize("name", ["plain", "a\\b", "a*b", "a[1]", "a?\\b", "\\*"])
def test_mount_point_of_any_name_is_protected(tmp_path: Path, name: str) -> None:
    _files(tmp_path / "night", "etc/a")
    _files(tmp_path / "image", f"nested/{name}/own", f"fat/{name}/own", f"mnt/{name}/lost+found/x", f"not/{name}-gone")
    fat, mounted = MountedBy(f"/fat/{name}", "f", "vfat"), MountedBy(f"/mnt/{name}", "m", "ext4")
    _both_passes(tmp_path, [ROOT, fat, mounted], [], [f"/nested/{name}"])
    found = {str(path.relative_to(tmp_path / "image")) for path in (tmp_path / "image").rglob("*") if path.is_file()}
    assert found == {"etc/a", f"nested/{name}/own", f"fat/{name}/own", f"mnt/{name}/lost+found/x"}


@pytest.mark.parametrize(
    ("path", "place"), [("/var/log/x", "/var"), ("/variable", "/"), ("/var", "/var"), ("/boot/efi/EFI", "/boot/efi")]
)
def test_path_lies_on_its_nearest_mount_point(path: str, place: str) -> None:
    assert place_of_path(path, ["/", "/var", "/boot", "/boot/efi"]) == place


BLKID = """DEVNAME=/dev/sda1
UUID=AAAA-1
LABEL=Data
PARTLABEL=EFI\\ System
PARTUUID=P-1

DEVNAME=/dev/mapper/vg--0-root
TYPE=ext4

DEVNAME=/dev/sdb
UUID=luks-1
TYPE=crypto_LUKS
"""
KNOWN = known_names(parse_blkid(BLKID))
GRUB = """
menuentry 'Debian' {
    if [ x$feature_platform_search_hint = xy ]; then
      search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt2  {uuid}
    fi
    linux   /vmlinuz-{kernel} root={root} ro quiet
}
"""


def grub(uuid: str = "AAAA-1", kernel: str = "2", root: str = "/dev/mapper/vg--0-root") -> str:
    return GRUB.replace("{uuid}", uuid).replace("{kernel}", kernel).replace("{root}", root)


@pytest.mark.parametrize(
    "texts",
    [
        {"/etc/fstab": 'UUID="aaaa-1" / ext4 defaults 0 1\nLABEL=Data /d xfs\nPARTUUID=p-1 /e ext4\n'},
        {"/etc/fstab": "/dev/disk/by-partlabel/EFI\\x20System /boot/efi vfat\n"},
        {"/etc/fstab": "/dev/mapper/vg--0-root / ext4\n/dev/vg-0/root /a ext4\n"},
        {"/etc/fstab": "/dev/vda1 /b ext4\n/swapfile none swap\nnas:/x /x nfs\ntmpfs /tmp tmpfs\n"},
        {"/etc/fstab": "/a /b none bind\nUUID=none /c ext4 noauto\nUUID=n /d ext4 _netdev"},
        {"/etc/crypttab": "data UUID=luks-1 none luks\n", "/etc/fstab": "/dev/mapper/data /data ext4\n"},
        {"/boot/grub/grub.cfg": grub(), "/boot/efi/EFI/debian/grub.cfg": "search.fs_uuid AAAA-1 root hd0,gpt2\n"},
        {"/boot/grub/grub.cfg": grub() + grub("OTHER", "9", "UUID=other")},
        {
            "/boot/efi/EFI/debian/grub.cfg": "search.fs_uuid AAAA-1 root",
            "/boot/efi/EFI/old/grub.cfg": "search.fs_uuid X y",
        },
    ],
)
def test_image_that_has_all_that_is_named_lacks_nothing(texts: dict[str, str]) -> None:
    assert missing(texts, KNOWN) == []


@pytest.mark.parametrize(
    ("path", "text", "names", "stops"),
    [
        ("/etc/fstab", "UUID=changed / ext4 defaults 0 1\n", "UUID=changed (/)", True),
        ("/etc/fstab", "/dev/disk/by-uuid/changed /srv xfs\n", "/dev/disk/by-uuid/changed (/srv)", True),
        ("/etc/fstab", "/dev/vg-0/gone /srv xfs\n", "/dev/vg-0/gone (/srv)", True),
        ("/etc/fstab", "LABEL=data /srv xfs nofail\n", "LABEL=data (/srv)", False),
        ("/etc/fstab", "UUID=changed none swap sw 0 0\n", "UUID=changed (swap)", False),
        ("/etc/crypttab", "data UUID=changed none luks\n", "UUID=changed", False),
        ("/boot/grub/grub.cfg", grub(uuid="CHANGED"), "uuid=changed", True),
        ("/boot/grub2/grub.cfg", grub(root="UUID=changed"), "uuid=changed", True),
        ("/boot/efi/EFI/debian/grub.cfg", "search.fs_uuid changed root\n", "uuid=changed", True),
    ],
)
def test_name_that_no_disk_has_is_told_and_stops_the_boot_or_not(path: str, text: str, names: str, stops: bool) -> None:
    (found,) = missing({path: text}, KNOWN)
    assert (found.where, found.name, found.stops_boot) == (path, names, stops)


@pytest.mark.parametrize(
    ("named", "there", "found"),
    [
        ("/vmlinuz-2", "boot/vmlinuz-2", True),
        ("/boot/vmlinuz-2", "boot/vmlinuz-2", True),
        ("/@/boot/vmlinuz-2", "boot/vmlinuz-2", True),
        ("($root)/vmlinuz-2", "boot/vmlinuz-2", True),
        ("/ostree/deb-1/vmlinuz-2", "boot/ostree/deb-1/vmlinuz-2", True),
        ("/vmlinuz-3", "boot/vmlinuz-2", False),
    ],
)
def test_kernel_of_grub_is_looked_for_where_a_client_may_have_it(
    tmp_path: Path, named: str, there: str, found: bool
) -> None:
    (tmp_path / there).parent.mkdir(parents=True)
    (tmp_path / there).touch()
    (places,) = kernels({"/boot/grub/grub.cfg": grub().replace("/vmlinuz-2", named)}).values()
    assert any(source_tree.exists(tmp_path, place) for place in places) == found


def test_file_system_in_a_crypt_device_that_is_not_there_stops_the_boot() -> None:
    texts = {"/etc/crypttab": "data UUID=changed none\n", "/etc/fstab": "/dev/mapper/data /data ext4\n"}
    assert [one.stops_boot for one in missing(texts, KNOWN)] == [False, True]


@pytest.mark.parametrize(
    ("text", "used"),
    [("SELINUX=enforcing\n", True), ("#x\nSELINUX = Permissive \n", True), ("SELINUX=disabled\n", False)],
)
def test_selinux_is_used_as_its_configuration_says(text: str, used: bool) -> None:
    assert uses_selinux({"/etc/selinux/config": text}) == used
    assert not uses_selinux({})


def test_links_of_a_night_lead_nowhere_on_this_machine(tmp_path: Path) -> None:
    night, secret = tmp_path / "night", tmp_path / "secret"
    (night / "etc").mkdir(parents=True)
    secret.mkdir()
    (secret / "fstab").write_text("secret")
    (night / "var").symlink_to(secret)
    (night / "etc/fstab").symlink_to(secret / "fstab")
    os.mkfifo(night / "etc/crypttab")
    for place in ("/var", "/var/below", "/etc/fstab"):
        with pytest.raises(SourceRefused, match=place):
            source_tree.names_in(night, place)
    assert source_tree.names_in(night, "/none") is None
    assert source_tree.names_in(night, "/") == ["etc", "var"]
    for path in ("/etc/fstab", "/var/fstab", "/etc/crypttab", "/../secret/fstab"):
        assert source_tree.text_of(night, path) == ""


def test_bytes_are_counted_once_by_mount_point_without_holes(tmp_path: Path) -> None:
    for path in ("a", "var/b", "var/lib/c"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(os.urandom(8192))
    os.link(tmp_path / "var/b", tmp_path / "var/lib/again")
    with (tmp_path / "var/sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert source_tree.bytes_by_place(tmp_path, ["/", "/var"]) == {"/": 8192, "/var": 16384}
