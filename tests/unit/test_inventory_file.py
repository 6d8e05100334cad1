"""The inventory: every mistake at once, with its path and line, quickly, and without printing secrets."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tasks.drivers import inventory_file
from tasks.drivers.inventory_file import MAX_BYTES, load, parse
from tasks.errors import ConfigError, InventoryError
from tasks.model.inventory import Inventory

BASE = """\
store: {path: /srv/gbs}
permanent: {path: /mnt/gbs, store_id: far-1, export: 'nas:/export/gbs'}
identities:
  default: {private_key_file: /etc/gbs/key, known_hosts_file: /etc/gbs/known_hosts}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(InventoryError) as caught:
        parse(text, "inventory.yaml")
    path, found = caught.value.args
    assert path == "inventory.yaml"
    return list(found)


def with_client(fields: str) -> str:
    return f"{BASE}clients:\n  web1:\n    address: web1.example.org\n" + "".join(
        f"    {line}\n" for line in fields.splitlines()
    )


def test_small_inventory_is_enough() -> None:
    inventory = parse(BASE + "clients:\n  web1: 10.0.0.1\n", "inventory.yaml")
    assert inventory.clients["web1"].address == "10.0.0.1"
    assert inventory.policy_of(inventory.clients["web1"]).daily == 14


def test_every_mistake_is_reported_at_once_with_path_and_line() -> None:
    text = BASE + (
        "kvm_hosts:\n"  # 5
        "  kvm1: {address: -oProxyCommand=x}\n"
        "clients:\n"
        "  web1: {address: web1, port: 0, colour: red}\n"
        "  db1:\n"
        "    addres: db1\n"  # 10
        "  old1:\n"
        "    address: old1\n"
        "    policy: rare\n"
        "    identity: admin\n"
        "  old1: old1\n"  # 15
        "polices: {}\n"
    )
    found = problems(text)
    for line, path, word in [
        (6, "kvm_hosts.kvm1.address", "not a host name"),
        (8, "clients.web1.port", "greater than or equal to 1"),
        (8, "clients.web1.colour", "unknown key"),
        (9, "clients.db1.address", "is missing"),
        (10, "clients.db1.addres", "unknown key"),
        (15, "clients.old1", "stands twice"),
        (16, "polices", "unknown key"),
    ]:
        assert any(item.startswith(f"line {line}: {path}: ") and word in item for item in found), (path, found)
    assert len(found) == 7


def test_mistakes_between_sections_are_reported_with_those_of_shape() -> None:
    """An operator corrected one kind of mistake only to be told of the other kind."""
    found = problems(
        BASE + "clients:\n  web1: {address: a, port: no}\n  web2: {address: b, identity: admin}\n"
        "  web3: {address: c, vm: v}\n  web4: {address: d, vm: v}\n"
    )
    assert len(found) == 3
    assert found[0].startswith("line 6: clients.web1.port: ")
    assert found[1] == "line 7: clients.web2.identity: no identity 'admin'; known are default"
    assert found[2].startswith("line 9: clients.web4.vm: VM 'v' is already client 'web3'")


def test_mistake_in_an_identity_does_not_make_its_users_mistaken() -> None:
    text = BASE.replace("known_hosts_file: /etc/gbs/known_hosts", "known_hosts: x") + "clients: {web1: a}\n"
    assert all("identities.default" in item for item in problems(text))


@pytest.mark.parametrize(
    ("fields", "path", "word"),
    [
        ("vm: ' v'", "clients.web1.vm", "printable"),
        ('vm: "a\\nb"', "clients.web1.vm", "printable"),
        ("paths: [srv]", "clients.web1.paths.0", "absolute"),
        ("paths: [/srv, /a/../b]", "clients.web1.paths.1", "absolute"),
        ('dump_folder: "/a\\tb"', "clients.web1.dump_folder", "printable"),
        ("exclude: ['/*']", "clients.web1", "leave out everything"),
        ("exclude: ['/**']", "clients.web1", "leave out everything"),
        ("exclude: ['!']", "clients.web1", "leave out everything"),
        ("exclude: ['']", "clients.web1", "leave out everything"),
        ("databases: [{engine: oracle}]", "clients.web1.databases.0.engine", "postgresql"),
        ("databases: [{engine: mariadb}, {engine: mariadb}]", "clients.web1", "once"),
        ("probes: [{}]", "clients.web1.probes.0", "either"),
        ("probes: [{tcp: 22, command: [x]}]", "clients.web1.probes.0", "either"),
        ("probes: [{command: reboot}]", "clients.web1.probes.0.command", "tuple"),
        ("port: 65536", "clients.web1.port", "65535"),
        ("platform: plan9", "clients.web1.platform", "linux"),
        ("platform: windows", "clients.web1", "paths must be stated"),
        ("platform: hpux\npaths: [/opt]\ndatabases: [{engine: mariadb}]", "clients.web1", "on Linux only"),
        ("platform: hpux\npaths: [/opt]\ntransport: saveset", "clients.web1", "tar or ssh, not by saveset"),
        ("platform: openvms\npaths: [/dka0]\nexclude: [tmp]", "clients.web1", "leaves nothing out"),
        ("transport: rsync-daemon\npaths: [/srv]", "clients.web1", "needs daemon"),
        ("daemon: {module: all}\npaths: [/srv]", "clients.web1", "needs daemon"),
        ("transport: rsync-daemon\ndaemon: {module: a b}", "clients.web1.daemon.module", "match"),
        ("transport: rsync-daemon\ndaemon: {module: all, user: gbs}", "clients.web1.daemon", "belong together"),
        ("ssh: false", "clients.web1", "rsync-daemon only"),
        ("ssh: false\ntransport: rsync-daemon\ndaemon: {module: all}", "clients.web1", "paths must be stated"),
        ("policy: rare", "clients.web1.policy", "no policy 'rare'"),
        ("identity: admin", "clients.web1.identity", "no identity 'admin'"),
    ],
)
def test_mistake_of_a_client_is_named(fields: str, path: str, word: str) -> None:
    (found,) = problems(with_client(fields))
    assert f": {path}: " in found
    assert word in found


@pytest.mark.parametrize(
    "address",
    ["-oProxyCommand=x", "-rf", "a b", "a;b", "$(id)", "user@host", "a/b", "", "a\nb", "héllo", "[::1]", ".a"],
)
def test_hostile_address_is_refused(address: str) -> None:
    text = BASE + yaml.safe_dump({"clients": {"long": {"address": address}, "short": address}})
    found = problems(text)
    assert len(found) == 2
    assert all("not a host name or IP address" in item for item in found)


@pytest.mark.parametrize("address", ["web1", "web1.example.org", "10.0.0.1", "fe80::1%eth0", "::1", "_x"])
def test_sound_address_is_taken(address: str) -> None:
    assert parse(BASE + yaml.safe_dump({"clients": {"c": address}}), "f").clients["c"].address == address


@pytest.mark.parametrize("user", ["-l", "root x", "", "a;b", "root\n"])
def test_hostile_user_is_refused(user: str) -> None:
    identity = {"user": user, "private_key_file": "/k", "known_hosts_file": "/h"}
    (found,) = problems(BASE.partition("identities")[0] + yaml.safe_dump({"identities": {"default": identity}}))
    assert "not a user name" in found


@pytest.mark.parametrize(
    ("policy", "word"),
    [
        ("daily: 0", "daily"),
        ("daily: 1", "daily"),
        ("daily: -3", "daily"),
        ("weekly: -1", "weekly"),
        ("{weekly: 0, monthly: 3}", "weekly must not be 0"),
        ("image_max_age_days: 0", "image_max_age_days"),
        ("max_shrink_percent: 101", "max_shrink_percent"),
        ("max_shrink_percent: 0", "max_shrink_percent"),
        ("transfer_deadline_s: 0", "transfer_deadline_s"),
        ("daily: .inf", "daily"),
        ("daily: 2.5", "daily"),
    ],
)
def test_policy_that_keeps_nothing_is_refused(policy: str, word: str) -> None:
    flow = policy if policy.startswith("{") else f"{{{policy}}}"
    (found,) = problems(f"{BASE}policies:\n  default: {flow}\n")
    assert found.startswith("line 6: policies.default")
    assert word in found


@pytest.mark.parametrize(
    ("store", "permanent", "overlap"),
    [
        ("/srv", "/srv", True),
        ("/srv", "/srv/far", True),
        ("/srv/gbs", "/srv", True),
        ("/srv/", "/srv//far/.", True),
        ("/srv/./a", "/srv/a", True),
        ("/", "/mnt", True),
        ("/srv", "/srv2", False),
        ("/srv/a", "/srv/b", False),
    ],
)
def test_overlapping_stores_are_refused(store: str, permanent: str, overlap: bool) -> None:
    text = BASE.replace("/srv/gbs", store).replace("/mnt/gbs", permanent)
    if not overlap:
        parse(text, "f")
        return
    (found,) = problems(text)
    assert found.startswith("line 2: permanent.path: overlaps the store")


@pytest.mark.parametrize(
    ("path", "becomes"), [("//", "/"), ("/", "/"), ("/a/", "/a"), ("//a///b", "/a/b"), ("/srv/./www", "/srv/www")]
)
def test_path_is_normal_before_rsync_sees_it(path: str, becomes: str) -> None:
    """`//` became the empty path, which is the home folder for rsync; /./ made --relative cut the path."""
    assert parse(with_client(f"paths: ['{path}']"), "f").clients["web1"].paths == (becomes,)


@pytest.mark.parametrize("export", ["nas", "-o x:/y", "nas:/a b", "/local", ""])
def test_export_that_is_none_is_refused(export: str) -> None:
    (found,) = problems(BASE.replace("nas:/export/gbs", export))
    assert "permanent.export" in found


def test_kind_and_export_belong_together() -> None:
    assert "kind local has none" in problems(BASE.replace("path: /mnt/gbs,", "path: /mnt/gbs, kind: local,"))[0]
    assert "needs export" in problems(BASE.replace(", export: 'nas:/export/gbs'", ""))[0]


def test_duplicate_names_are_refused() -> None:
    found = problems(BASE + "kvm_hosts: {a: a}\nclients:\n  a: a\n  b: b\n  b: c\n")
    assert found == [
        "line 9: clients.b: stands twice",
        "line 7: clients.a: a KVM host has the same name; each is backed up under its name",
    ]


def test_secret_under_an_unknown_key_is_not_printed() -> None:
    found = problems(with_client("password: hunter2\ndatabases: [{engine: mariadb, password: hunter3}]"))
    assert len(found) == 2
    assert "hunter" not in "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "a: b: c",
        "[",
        "\0",
        "<<: *x",
        "--- a\n--- b",
        "? [1]\n: 2",
        "site: !!python/object/apply:os.system [id]",
        "site: 2026-13-45",
        "site: !!bool maybe",
        "site: !!timestamp x",
        "store: " + "1" * 5000,
    ],
    ids=lambda text: text[:20],
)
def test_text_that_is_no_yaml_is_one_problem(text: str) -> None:
    """A date such as 2026-13-45 ended in a traceback from inside PyYAML."""
    (found,) = problems(text)
    assert "not YAML" in found


@pytest.mark.parametrize("text", ["", "null", "# nothing\n", "{}"])
def test_empty_inventory_says_what_is_missing(text: str) -> None:
    assert [item.partition(": ")[2] for item in problems(text)] == [
        f"{name}: is missing" for name in ("store", "permanent", "identities")
    ]


@pytest.mark.parametrize("text", ["[]", "x", "1"])
def test_inventory_that_is_no_mapping_is_one_problem(text: str) -> None:
    (found,) = problems(text)
    assert found.startswith("line 1: the whole file: ")


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (BOMB, "aliases"),
        ("a: &a [*a]", "deeply"),
        ("a: &a {b: *a}", "deeply"),
        ("[" * 100_000, "deeply"),
        ("- " * 300_000, "deeply"),
        ("{a: " * 100_000, "deeply"),
        ("? " * 300_000, "deeply"),
    ],
    ids=["bomb", "self", "self-map", "flow", "block", "map", "keys"],
)
def test_yaml_bomb_is_refused_quickly(text: str, word: str) -> None:
    started = time.monotonic()
    (found,) = problems(text)
    assert word in found
    assert time.monotonic() - started < 10


def test_shared_defaults_by_alias_and_merge_are_fine() -> None:
    text = BASE + "clients:\n  a: &a {address: a, port: 2222}\n  b: {<<: *a, address: b}\n"
    assert parse(text, "f").clients["b"].port == 2222


def test_file_of_a_thousand_clients_is_read() -> None:
    rows = "".join(f"  c{i}: {{address: 10.0.{i // 250}.{i % 250}, exclude: [/srv/x]}}\n" for i in range(1000))
    assert len(parse(BASE + "clients:\n" + rows, "f").clients) == 1000


def test_huge_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "i.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="too large"):
        load(path)
    with pytest.raises(ConfigError, match="too large"):
        load(Path("/dev/zero"))


@pytest.mark.parametrize(("content", "word"), [(None, "no inventory"), (b"\xff\xfe\xff", "cannot be read")])
def test_file_that_cannot_be_read_is_a_mistake(tmp_path: Path, content: bytes | None, word: str) -> None:
    path = tmp_path / "i.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=word):
        load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


def test_inventory_of_the_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "i.yaml"
    path.write_text("\ufeff" + BASE)
    monkeypatch.setenv("GBS_INVENTORY", str(path))
    assert isinstance(load(), Inventory)
    monkeypatch.delenv("GBS_INVENTORY")
    assert str(inventory_file.inventory_path()) == inventory_file.DEFAULT_FILE


def test_inventory_that_is_as_it_was_is_not_parsed_again_and_one_that_was_changed_is(tmp_path: Path) -> None:
    path = tmp_path / "i.yaml"
    path.write_text(BASE)
    first = load(path)
    assert load(path) is first
    path.write_text(BASE + "site: another\n")
    assert load(path).site == "another"


def test_model_and_drivers_never_import_prefect() -> None:
    names = ["inventory_file", "store", "rsync", "rsnapshot", "permanent", "lock", "progress", "databases", "facts"]
    code = "import sys, " + ", ".join(f"tasks.drivers.{name}" for name in names)
    code += "; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
