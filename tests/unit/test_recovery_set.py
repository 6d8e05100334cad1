"""The GBS server's recovery set: opened with age(1) and tar(1) as somebody would who has nothing else."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.drivers import recovery_set
from tasks.drivers.inventory_file import parse
from tasks.drivers.recovery_set import PrefectServer
from tasks.model.inventory import Inventory

NOW = datetime(2026, 11, 26, 3, tzinfo=UTC)
RUN = "6d0fa9b4-6d5c-4f0e-9d59-0c5d7ad2c001"
SECRET = "a private key's text"


class Server:
    """A GBS server in a folder: inventory, keys, Prefect's database; the recovery key lies elsewhere."""

    def __init__(self, root: Path) -> None:
        self.root, self.sets = root, root / "store" / "server"
        self.recovery_key = root / "elsewhere.txt"
        subprocess.run(["age-keygen", "-o", str(self.recovery_key)], check=True, capture_output=True)
        argv = ["age-keygen", "-y", str(self.recovery_key)]
        self.public = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
        for name in ("key", "known_hosts", "password", "more"):
            (root / name).write_text(f"{SECRET} {name}\n")
            (root / name).chmod(0o600)
        self.file = root / "inventory.yaml"
        self.database = root / "prefect.db"
        with closing(sqlite3.connect(self.database)) as database:
            database.execute("CREATE TABLE flow_run (id TEXT)")
            database.execute("INSERT INTO flow_run VALUES (?)", (RUN,))
            database.commit()
        self.declare(f"recovery_keys: [{self.public}], also: [{root}/more]")

    def declare(self, server: str) -> None:
        self.file.write_text(
            f"store: {{path: {self.root}/store}}\n"
            f"permanent: {{path: {self.root}/far, store_id: far, kind: local}}\n"
            f"identities: {{default: {{private_key_file: {self.root}/key, "
            f"known_hosts_file: {self.root}/known_hosts}}}}\n"
            f"clients: {{w1: {{address: w1, platform: windows, paths: [/c], transport: rsync-daemon, "
            f"daemon: {{module: all, user: gbs, "
            f"password_file: {self.root}/password}}}}}}\n"
            f"server: {{{server}}}\n"
        )

    @property
    def declared(self) -> Inventory:
        return parse(self.file.read_text(), str(self.file))

    def make(self, now: datetime = NOW, run: str = RUN) -> tuple[Path, tuple[str, ...]]:
        """The set and its warnings."""
        prefect = PrefectServer({"store": {"type": "gbs-store", "data": {}}}, self.database, run)
        made = recovery_set.make(self.sets, self.root / "trash", self.declared, self.file, prefect, now)
        return self.sets / made.id, made.warnings

    def opened(self, path: Path) -> bytes:
        argv = ["age", "--decrypt", "-i", str(self.recovery_key), str(path)]
        return subprocess.run(argv, check=True, capture_output=True).stdout


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def test_a_set_rebuilds_keys_inventory_and_database(server: Server, tmp_path: Path) -> None:
    made, warnings = server.make()
    assert warnings == ()
    assert (made / "inventory.yaml").read_bytes() == server.file.read_bytes()
    rebuilt = tmp_path / "rebuilt"
    rebuilt.mkdir()
    subprocess.run(["tar", "-x", "-C", rebuilt], input=server.opened(made / "keys.tar.age"), check=True)
    for name in ("key", "known_hosts", "password", "more"):
        back = rebuilt / str(tmp_path / name).lstrip("/")
        assert back.read_text() == f"{SECRET} {name}\n"
        assert oct(back.stat().st_mode)[-3:] == "600"
    (tmp_path / "back.db").write_bytes(server.opened(made / "prefect.db.age"))
    with closing(sqlite3.connect(tmp_path / "back.db")) as database:
        assert database.execute("SELECT id FROM flow_run").fetchall() == [(RUN,)]


def test_nothing_secret_lies_there_unsealed_and_nobody_else_can_read_it(server: Server) -> None:
    made, _ = server.make()
    assert sorted(path.name for path in made.iterdir()) == [
        *("RECOVER.txt", "blocks.json", "inventory.yaml", "keys.tar.age", "manifest.json", "prefect.db.age"),
    ]
    argv = ["grep", "--recursive", "--text", "--fixed-strings", SECRET, str(server.root / "store")]
    assert subprocess.run(argv, check=False, capture_output=True).returncode == 1
    assert {oct(path.stat().st_mode)[-3:] for path in made.iterdir() if path.name != "manifest.json"} == {"600"}
    assert oct(server.sets.stat().st_mode)[-3:] == "700"


def test_the_database_is_copied_while_it_is_written_to(server: Server, tmp_path: Path) -> None:
    with closing(sqlite3.connect(server.database, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("INSERT INTO flow_run VALUES ('kept')")
        writer.execute("BEGIN")
        writer.execute("INSERT INTO flow_run VALUES ('not yet')")
        made, warnings = server.make()
        writer.execute("ROLLBACK")
    assert warnings == ()
    (tmp_path / "back.db").write_bytes(server.opened(made / "prefect.db.age"))
    with closing(sqlite3.connect(tmp_path / "back.db")) as database:
        assert database.execute("SELECT id FROM flow_run").fetchall() == [(RUN,), ("kept",)]


def test_without_a_recovery_key_no_secret_is_gathered_and_that_is_said(server: Server) -> None:
    server.declare("")
    made, warnings = server.make()
    assert "age-keygen" in warnings[0]
    assert not list(made.glob("*.age"))
    assert not list(made.glob("prefect*"))


@pytest.mark.parametrize(
    ("declared", "run", "said"),
    [
        ("", "another", "another server's"),
        ("prefect_database: /nowhere/p.db", RUN, "/p.db: there is no such file"),
    ],
)
def test_a_database_that_is_not_this_servers_is_not_taken_for_it(
    server: Server, declared: str, run: str, said: str
) -> None:
    server.declare(", ".join(filter(None, [f"recovery_keys: [{server.public}]", declared])))
    made, warnings = server.make(run=run)
    assert said in warnings[0]
    assert not list(made.glob("prefect*"))


def test_a_missing_key_is_said_and_the_others_are_there(server: Server) -> None:
    (server.root / "key").unlink()
    made, warnings = server.make()
    assert warnings == (f"{server.root}/key is not in the recovery set: No such file or directory",)
    assert SECRET.encode() in server.opened(made / "keys.tar.age")


def test_a_damaged_database_is_said_and_the_keys_are_there(server: Server) -> None:
    server.database.write_bytes(b"not a database" * 1000)
    made, (warning,) = server.make()
    assert "prefect.db" in warning
    assert SECRET.encode() in server.opened(made / "keys.tar.age")
    assert not list(made.glob("prefect*"))


def test_a_link_and_its_file_and_a_folder_are_there_and_what_is_no_file_is_said(server: Server, tmp_path: Path) -> None:
    (tmp_path / "key").rename(tmp_path / "vault")
    (tmp_path / "key").symlink_to("vault")
    (tmp_path / "folder/sub").mkdir(parents=True)
    (tmp_path / "folder/sub/cert").write_text(SECRET)
    os.link(tmp_path / "folder/sub/cert", tmp_path / "folder/another")
    os.mkfifo(tmp_path / "folder/fifo")
    server.declare(f"recovery_keys: [{server.public}], also: [{tmp_path}/folder]")
    made, warnings = server.make()
    assert warnings == (f"{tmp_path}/folder/fifo is not in the recovery set: it is neither a file nor a folder",)
    rebuilt = tmp_path / "rebuilt"
    rebuilt.mkdir()
    subprocess.run(["tar", "-x", "-C", rebuilt], input=server.opened(made / "keys.tar.age"), check=True)
    below = rebuilt / str(tmp_path).lstrip("/")
    assert (below / "vault").read_text() == f"{SECRET} key\n"
    assert (below / "key").readlink() == Path("vault")
    assert (below / "folder/sub/cert").read_text() == (below / "folder/another").read_text() == SECRET


def test_a_file_that_gets_shorter_costs_no_other(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.declare(f"recovery_keys: [{server.public}], also: [{server.root}/a-log, {server.root}/zkey]")
    (server.root / "a-log").write_text("x" * 5000)
    (server.root / "zkey").write_text(SECRET)
    read = Path.read_bytes

    def shorter(path: Path) -> bytes:
        return read(path)[: 700 if path.name == "a-log" else None]

    monkeypatch.setattr(Path, "read_bytes", shorter)
    made, _ = server.make()
    listed = subprocess.run(["tar", "-t"], input=server.opened(made / "keys.tar.age"), check=True, capture_output=True)
    assert listed.stdout.decode().splitlines()[-1].endswith("/zkey")


def test_the_newest_set_that_lacks_nothing_is_never_given_up(server: Server) -> None:
    whole = server.make(NOW)[0].name
    server.declare("keep: 2")
    names = [server.make(NOW + timedelta(days=day))[0].name for day in range(1, 5)]
    assert sorted(path.name for path in server.sets.iterdir()) == [whole, *names[-2:]]


def test_only_the_newest_sets_are_kept(server: Server) -> None:
    server.declare(f"recovery_keys: [{server.public}], keep: 3")
    names = [server.make(NOW + timedelta(days=day))[0].name for day in range(5)]
    assert sorted(path.name for path in server.sets.iterdir()) == names[2:]
