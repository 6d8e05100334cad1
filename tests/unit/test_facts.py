"""Facts: parsers by JSON cases (tests/unit/facts: a command's output and what it must become), and the flavour."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tasks.model.device import REDACTED
from tasks.model.facts import FACTS, Facts, assemble
from tasks.model.facts_boot import BootLoader, BootMode, EfiBoot, EfiEntry, boot_loader
from tasks.model.shape import compare, shape_of_facts

CASES = sorted((Path(__file__).parent / "facts").glob("*.json"))
RELEASE = {"ID": "debian", "VERSION_ID": "12", "PRETTY_NAME": "Debian 12"}


def plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    return [plain(item) for item in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_fact_parses_as_its_case_says(path: Path) -> None:
    case = json.loads(path.read_text())
    output = case["output"] if isinstance(case["output"], str) else json.dumps(case["output"])
    assert plain(FACTS[case["fact"]].parse(output)) == case["expected"]


def test_every_parser_but_the_trivial_ones_has_a_case() -> None:
    trivial = {"kernel", "architecture", "hostname", "machine_id"}
    assert {path.stem.partition("-")[0] for path in CASES} == set(FACTS) - trivial


JSON_FACTS = ["block_devices", "bind_mounts", "file_systems", "volume_groups", "interfaces"]
TEXT_FACTS = [name for name in FACTS if name not in (*JSON_FACTS, "logical_volumes")]
UNREADABLE = {
    "volume_groups": ["{", "[1]", '{"report": 1}', '{"report": [1]}', '{"report": [{"pv": [{}]}]}'],
    "interfaces": ["", "usage: ip", '{"ifname": "x"}', "[", "[1]", '[{"ifname": "x"}]', "[[[]]]"],
}
ODD = [
    "",
    "\n",
    "\0",
    "=",
    "a b c d",
    "MD a b",
    "MD md0 0 0\nMD_UUID",
    "nexthop via",
    "1: :",
    "x" * 100_000,
    "\n" * 10_000,
]
NOISE = st.text(alphabet=st.sampled_from("MDBoot01:*= \t\n\\/,.#@<>[]viadev"), max_size=200)


@pytest.mark.parametrize(("fact", "output"), [(fact, text) for fact, texts in UNREADABLE.items() for text in texts])
def test_informative_fact_with_unreadable_output_raises_what_collect_notes(fact: str, output: str) -> None:
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
        FACTS[fact].parse(output)


@pytest.mark.parametrize("fact", TEXT_FACTS)
@pytest.mark.parametrize("output", ODD, ids=lambda text: repr(text[:12]))
def test_text_that_no_tool_would_write_breaks_no_parser(fact: str, output: str) -> None:
    FACTS[fact].parse(output)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("part", ["//a:", "#", "pass", "pass,", "\\a", "@b", ": <", "\\040", "Boot0000* ", "nexthop "])
def test_long_lines_take_no_time_to_speak_of(part: str) -> None:
    """A client must not be able to keep a worker busy: an expression that goes over a line again and again would."""
    for fact in TEXT_FACTS:
        FACTS[fact].parse(part * 50_000)
        FACTS[fact].parse(f"{part * 50_000} / ext4 {part * 50_000}@")
    FACTS["interfaces"].parse(f"1: lo: <UP> mtu 1 x\n2: {part * 50_000}")


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(TEXT_FACTS), NOISE)
def test_noise_breaks_no_parser(fact: str, output: str) -> None:
    FACTS[fact].parse(output)


@pytest.mark.parametrize("name", ["fstab-secrets", "crypttab-keyscript", "crypttab-debian"])
def test_no_secret_is_kept_of_the_tables_of_mounts(name: str) -> None:
    case = json.loads((Path(__file__).parent / f"facts/{name}.json").read_text())
    kept = str(FACTS[case["fact"]].parse(case["output"]))
    assert REDACTED in kept
    for secret in ("password=a", "b=c", "AQBx", "p@ss", ":pw", "PASSWD=x", "hunter2", "1234"):
        assert secret not in kept


@pytest.mark.parametrize("fact", ["block_devices", "file_systems"])
@pytest.mark.parametrize("output", ["{", "[]", "null", "{}", '{"blockdevices": [{}], "filesystems": [{}]}', "\0"])
def test_fact_with_unreadable_output_raises_what_collect_reports(fact: str, output: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        FACTS[fact].parse(output)


@pytest.mark.parametrize(
    ("boot_mode", "files", "program", "loader"),
    [
        ("bios", ("grub",), None, "grub"),
        ("bios", ("systemd-boot", "extlinux"), None, "extlinux"),
        ("bios", (), None, "unknown"),
        ("uefi", ("grub", "systemd-boot"), None, "grub"),
        ("uefi", ("grub", "systemd-boot"), "File(\\EFI\\systemd\\systemd-bootx64.efi)", "systemd-boot"),
        ("uefi", ("systemd-boot",), "\\EFI\\DEBIAN\\SHIMX64.EFI", "grub"),
        ("uefi", ("systemd-boot",), "File(\\EFI\\BOOT\\BOOTX64.EFI)", "systemd-boot"),
        ("uefi", (), "File(\\EFI\\Linux\\own.efi)", "unknown"),
    ],
)
def test_boot_loader_is_the_program_that_booted_else_the_one_configured(
    boot_mode: BootMode, files: tuple[BootLoader, ...], program: str | None, loader: BootLoader
) -> None:
    others = EfiEntry(number="0001", label="other", active=True, path="File(\\EFI\\debian\\grubx64.efi)")
    booted = EfiEntry(number="0002", label="x", active=True, path=f"HD(1,GPT,g,0x800,0x1000)/{program}")
    efi = EfiBoot(entries=(others, booted), current="0002") if program else None
    assert boot_loader(boot_mode, files, efi) == loader


def test_flags_are_those_that_old_tools_know() -> None:
    """RHEL 8 and Debian 11 clients could not be prepared: MOUNTPOINTS and --real are newer than theirs."""
    shell, _, script = FACTS["block_devices"].command
    assert shell == "sh"
    newest, _, fallback = script.partition("||")
    assert "MOUNTPOINTS" in newest
    assert fallback.split()[-1].endswith(",MOUNTPOINT")
    assert "--real" not in FACTS["file_systems"].command


def facts(devices: str = "web1", change: dict[str, str] | None = None, **values: Any) -> Facts:
    """The facts of a case and of web1's file systems, with `change` made in what the tools said."""
    files = {fact: f"facts/{fact}-{name}.json" for fact, name in (("block_devices", devices), ("file_systems", "web1"))}
    texts = {fact: (Path(__file__).parent / name).read_text() for fact, name in files.items()}
    for old, new in (change or {}).items():
        assert any(old in text for text in texts.values()), old
        texts = {fact: text.replace(old, new) for fact, text in texts.items()}
    parsed = {fact: FACTS[fact].parse(json.dumps(json.loads(text)["output"])) for fact, text in texts.items()}
    fixed = {"os_release": RELEASE, "kernel": "6.1", "architecture": "x86_64", "hostname": "web1"}
    return assemble(datetime(2026, 1, 1, tzinfo=UTC), fixed | parsed | values)


def flavour(of: Facts) -> str:
    return shape_of_facts(of).flavour


@pytest.mark.parametrize(
    "change",
    [
        {"f918dcb5-ea87-4a65-9298-8733ca9e3191": "00000000-0000-0000-0000-000000000000"},
        {"Kfko1T-bPgF-YQbJ-o7uX-qE1y-qVAy-jV5GgN": "another"},
        {'"vda': '"sda', "/dev/vda": "/dev/sda"},
        {'"vda': '"nvme0n1p', "/dev/vda": "/dev/nvme0n1p"},
        {'"label": "boot"': '"label": "start"'},
    ],
    ids=["uuid", "pv-uuid", "sda", "nvme", "label"],
)
def test_flavour_of_same_layout_with_other_names_is_the_same(change: dict[str, str]) -> None:
    assert flavour(facts(change=change)) == flavour(facts())


@pytest.mark.parametrize(
    "change",
    [
        {"6442450944": "6442450945"},
        {'"size": 314572800': '"size": 314572801'},
        {'"fstype": "xfs"': '"fstype": "ext4"'},
        {'"/var"': '"/srv"'},
        {'"vg0-var"': '"vg0-srv"'},
        {'"pttype": "gpt"': '"pttype": "dos"'},
        {"0fc63daf-8483-4772-8e79-3d69d8477de4": "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"},
    ],
    ids=["disk-size", "partition-size", "fs", "mount", "lv", "table", "partition-type"],
)
def test_flavour_of_another_layout_differs(change: dict[str, str]) -> None:
    assert flavour(facts(change=change)) != flavour(facts())


def test_flavour_differs_by_firmware_and_architecture() -> None:
    assert len({flavour(facts()), flavour(facts(efi=True)), flavour(facts(architecture="aarch64"))}) == 3


def test_flavour_does_not_depend_on_what_is_installed_or_used() -> None:
    other = facts(hostname="web2", kernel="6.2", packages=("a 1",), machine_id="m", change={"151949312": "151949313"})
    assert flavour(other) == flavour(facts())


@pytest.mark.parametrize(
    "change",
    [{"luks-5b1e3a9c": "luks-00000000"}, {"luks-5b1e3a9c": "sda2_crypt"}, {'"[SWAP]"': "null"}],
    ids=["luks-uuid", "crypt-name", "swap-off"],
)
def test_flavour_ignores_names_of_luks_and_whether_swap_is_on(change: dict[str, str]) -> None:
    """A LUKS device is named after its UUID: no two VMs shared a template, and swapoff made an image due."""
    assert flavour(facts("luks_swap", change=change)) == flavour(facts("luks_swap"))


def test_flavour_ignores_bind_mounts() -> None:
    """A container's bind mount, in whose path is an id, made an image due every night."""
    bound = {'"/boot"\n': '"/boot",\n"/var/lib/kubelet/pods/5b1e3a9c/volume-subpaths/x"\n'}
    assert flavour(facts(change=bound)) == flavour(facts())


def test_facts_survive_json() -> None:
    before = facts("luks_swap", packages=("a 1",))
    assert Facts.model_validate_json(before.model_dump_json()) == before


def test_facts_of_an_older_gbs_are_read_and_what_it_did_not_ask_is_unknown() -> None:
    new = {"boot_loader", "efi_boot", "fstab", "crypttab", "volume_groups", "md_arrays", "unread"}
    new |= {"interfaces", "routes", "resolvers"}
    old = facts().model_dump(mode="json", exclude=new)
    for device in old["block_devices"]:
        for name in ("fs_version", "table_uuid", "start_bytes", "sector_bytes"):
            del device[name]
        for name in ("uuid", "label", "flags"):
            del device[f"partition_{name}"]
    read = Facts.model_validate_json(json.dumps(old))
    assert (read.md_arrays, read.interfaces, read.boot_loader, read.unread) == (None, None, "unknown", ())
    assert flavour(read) == flavour(facts())


def test_partitions_know_where_they_begin_and_luks_devices_stand_once() -> None:
    read = facts("luks_swap", partition_starts={"nvme0n1p1": 1048576})
    assert [device.start_bytes for device in read.block_devices if device.start_bytes] == [1048576]
    assert [(device.device, device.uuid, device.version) for device in read.luks_devices] == [("nvme0n1p2", "l", "")]
    assert flavour(read) == flavour(facts("luks_swap"))


@settings(max_examples=15, deadline=None)
@given(st.uuids(), st.uuids())
def test_flavour_never_depends_on_uuids(one: object, other: object) -> None:
    def named(uuid: object) -> str:
        return flavour(facts(change={"6cc4eee7-3f7d-4249-9d57-48df40b78e88": str(uuid)}))

    assert named(one) == named(other)


def test_comparison_says_each_point_that_differs_and_no_other() -> None:
    other = facts(change={"6442450944": "6442450945", '"fstype": "xfs"': '"fstype": "ext4"'}, efi=True)
    points = compare(shape_of_facts(facts()), shape_of_facts(other))
    differing = {point.what: (point.template, point.client) for point in points if not point.same}
    assert set(differing) == {"boot mode", "disk 1", "lvm vg0-var"}
    assert differing["boot mode"] == ("bios", "uefi")
    assert "(6442450944 bytes), gpt" in differing["disk 1"][0]
    assert "xfs on /var" in differing["lvm vg0-var"][0]
    assert "ext4 on /var" in differing["lvm vg0-var"][1]


def test_comparison_with_a_system_of_fewer_partitions_and_volumes() -> None:
    points = compare(shape_of_facts(facts()), shape_of_facts(facts("nothing")))
    assert {point.client for point in points if point.what.startswith(("disk", "lvm"))} == {"nothing"}
