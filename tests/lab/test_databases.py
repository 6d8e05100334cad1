"""Every engine keeps one contract, on a real server of each: judged by the engines' own clients, sha256sum and stat."""

from __future__ import annotations

import dataclasses
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tasks.drivers import databases, process, ssh
from tasks.drivers.databases import command, proving, recovering
from tasks.drivers.ssh import Shell
from tasks.errors import CommandTimedOut, DumpFailed, RestoreFailed
from tasks.model.databases import DumpCommand, EngineName, Server
from tasks.model.manifest import DumpRecord
from tests.lab.database_client import DatabaseClient
from tests.lab.sshd import make_key

FOLDER = "/var/backups/gbs"
HOSTILE = """a'b"$(touch /pwned)`id`; -rf \\ é"""
SECRET = "open-sesame-3141"


@dataclasses.dataclass(frozen=True)
class Case:
    """An engine in tests: its databases, and what writes its dumps. The rest is in engines/<engine>.sh."""

    engine: EngineName
    names: tuple[str, ...]
    tool: str

    @property
    def server(self) -> Server:
        return Server(self.engine)


CASES = (
    Case("postgresql", ("crm", "CRM", HOSTILE), "pg_dump"),
    Case("mariadb", ("crm", "CRM", HOSTILE), "mariadb-dump"),
    Case("sqlite", ("/srv/app/shop.db", f"/srv/app/{HOSTILE.replace('/', '_')}.db"), "sqlite3"),
    Case("redis", ("all",), "cp"),
    Case("openldap", ("dc=nodomain",), "slapcat"),
)
BY_NAME = {case.engine: case for case in CASES}
SERVERS = [case for case in CASES if case.engine != "sqlite"]
CLIENT_PROGRAMS = {"postgresql": "psql", "mariadb": "mariadb", "redis": "redis-cli"}
WITH_LOGIN = [BY_NAME["postgresql"], BY_NAME["mariadb"], BY_NAME["redis"]]


def each(cases: Sequence[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.engine)


class Client:
    """The client, a shell on it, and what was started there."""

    def __init__(self, system: DatabaseClient, shell: Shell) -> None:
        self.system, self.shell, self.started = system, shell, set[str]()

    def run(self, script: str, *words: str) -> str:
        return self.system.run(["bash", "-euc", script, "bash", *words]).stdout

    def prepare(self, case: Case) -> None:
        """The engine runs and its databases are filled."""
        if case.engine not in self.started:
            self.system.engine(case.engine, "start")
            for name in case.names:
                self.system.engine(case.engine, "fill", name)
            self.started.add(case.engine)

    def dump(
        self, case: Case, name: str | None = None, server: Server | None = None, size_bytes: int = 0
    ) -> DumpRecord:
        name = case.names[0] if name is None else name
        return databases.dump_database(self.shell, server or case.server, name, size_bytes, FOLDER, 60)

    def outside(self, path: str) -> Path:
        """Where the machine sees a file that the client has changed."""
        return self.system.directory / "upper" / path.lstrip("/")

    def log_in_as(self, case: Case, secret: str) -> None:
        """Write the login file."""
        text = self.system.engine(case.engine, "login", secret)
        self.run('umask 077; printf "%s\\n" "$1" > /etc/gbs-login', text)

    def instead_of(self, tool: str, script: str) -> None:
        """Put a program before `tool`, which it can call as "$real"."""
        real = self.run("command -v -- $1", tool).strip()
        text = f"#!/bin/bash\nreal={real}\n{script}\n"
        self.run('printf %s "$1" > /usr/local/bin/$2; chmod +x /usr/local/bin/$2', text, tool)


@pytest.fixture(scope="module")
def client(lab_folder: Path) -> Iterator[Client]:
    """A client whose servers are started when a test needs them."""
    key = lab_folder / "id_db"
    system = DatabaseClient("db1", lab_folder / "db1", make_key(key, "gbs tests"))
    try:
        system.start()
        with ssh.connect(system.target(key)) as shell:
            yield Client(system, shell)
    finally:
        system.remove()


@pytest.fixture(autouse=True)
def _no_tools_of_ours(client: Client) -> Iterator[None]:
    yield
    client.run("rm -rf /usr/local/bin/*")
    assert not client.outside("/pwned").exists()


def content(client: Client, dump: DumpRecord) -> str:
    return client.run('sha256sum -- "$1"', dump.path).lstrip("\\")[:64]


@each(CASES)
def test_every_database_is_listed_dumped_lost_and_restored(client: Client, case: Case) -> None:
    client.prepare(case)
    listed = databases.list_databases(client.shell, case.server, case.names)
    assert set(case.names) <= set(listed)
    assert all(size > 0 for size in listed.values())
    before = [client.system.engine(case.engine, "read_back", name) for name in case.names]
    dumps = [client.dump(case, name, size_bytes=listed[name]) for name in case.names]
    accounts = databases.dump_accounts(client.shell, case.server, FOLDER, 60)
    for dump in (*dumps, *filter(None, [accounts])):
        status = client.outside(dump.path).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_size) == (0o600, dump.size_bytes)
        assert content(client, dump) == dump.sha256
    for name in case.names:
        client.system.engine(case.engine, "lose", name)
    databases.restore(client.shell, case.server, [*dumps, *filter(None, [accounts])], 60)
    assert databases.is_ready(client.shell, case.server)
    assert [client.system.engine(case.engine, "read_back", name) for name in case.names] == before
    assert client.run("find /var/backups -name '*.partial'") == ""


@each(CASES)
@pytest.mark.parametrize("ending", ["kill -9 $$", "exit 0"], ids=["killed half way", "cut behind a pipe"])
def test_dump_that_is_cut_is_refused_and_the_old_one_stays(client: Client, case: Case, ending: str) -> None:
    client.prepare(case)
    before = client.dump(case)
    if case.engine == "postgresql":  # whose user does not see the file
        half = '"$real" "$@" | head -c 3000'
    else:
        cut = "truncate -s $(($(stat -c %s $f) / 2)) $f"
        half = f'"$real" "$@"; for f in $(find /var/backups -name "*.partial"); do {cut}; done'
    client.instead_of(case.tool, f"{half}; {ending}")
    with pytest.raises(DumpFailed, match=case.engine):
        client.dump(case)
    assert content(client, before) == before.sha256
    client.run("rm -rf /usr/local/bin/*")
    client.dump(case)
    assert client.run("find /var/backups -name '*.partial'") == ""


@each(CASES)
def test_full_disk_of_the_client_keeps_the_old_dump(client: Client, case: Case) -> None:
    client.prepare(case)
    before = client.dump(case)
    folder = f"{FOLDER}/{case.engine}"
    try:
        client.run(
            "truncate -s 4M /small.img; mkfs.ext4 -q -m 0 /small.img; mkdir -p /small; mount -o loop /small.img /small;"
            ' cp -a "$1"/. /small; mount --bind /small "$1";'
            " dd if=/dev/zero of=/small/room bs=4k count=4 2>/dev/null;"
            " dd if=/dev/zero of=/small/ballast bs=4k 2>/dev/null || true; rm /small/room",
            folder,
        )
        assert before.size_bytes > 16 << 10, "it would fit"
        with pytest.raises(DumpFailed, match=r"the dump may need"):
            client.dump(case, size_bytes=1 << 40)
        with pytest.raises(DumpFailed, match=case.engine) as full:
            client.dump(case)
        assert "may need" not in str(full.value), "it was not begun"
        assert content(client, before) == before.sha256
    finally:
        client.run('umount "$1" /small || true; rm /small.img', folder)


@each(WITH_LOGIN)
def test_login_file_is_used_and_its_secret_is_seen_nowhere(client: Client, case: Case) -> None:
    client.prepare(case)
    client.system.engine(case.engine, "account", SECRET)
    server = dataclasses.replace(case.server, login="/etc/gbs-login")
    client.log_in_as(case, SECRET)
    client.run("rm -f /seen")
    for tool in {case.tool, CLIENT_PROGRAMS[case.engine]}:
        look = 'tr "\\0" "\\n" < /proc/$$/environ; printf "%s\\n" "$0" "$@"'
        client.instead_of(tool, f'{{ {look}; }} >> /seen; exec "$real" "$@"')
    assert databases.is_ready(client.shell, server)
    assert set(case.names) <= set(databases.list_databases(client.shell, server))
    assert client.dump(case, server=server).size_bytes > 0
    seen = client.run("cat /seen")
    assert all(f"/{tool}\n" in seen for tool in (case.tool, CLIENT_PROGRAMS[case.engine]))
    assert SECRET not in seen
    client.log_in_as(case, "wrong")
    assert not databases.is_ready(client.shell, server)
    with pytest.raises(DumpFailed) as refused:
        databases.list_databases(client.shell, server)
    assert case.engine in str(refused.value)
    with pytest.raises(DumpFailed):
        client.dump(case, server=server)


def test_servers_that_run_are_found(client: Client) -> None:
    for case in CASES:
        client.prepare(case)
    assert databases.running_engines(client.shell) == {"postgresql", "mariadb", "redis", "openldap"}


def test_file_that_is_no_database_is_refused(client: Client) -> None:
    client.prepare(BY_NAME["sqlite"])
    with pytest.raises(DumpFailed, match="is not a file"):
        databases.list_databases(client.shell, Server("sqlite"), ["/srv/app/none.db"])
    with pytest.raises(DumpFailed, match=r"sqlite database '/srv/app/none\.db' on db1"):
        databases.dump_database(client.shell, Server("sqlite"), "/srv/app/none.db", 0, FOLDER, 30)
    assert client.run("ls /srv/app/none.db 2>&1 || true").endswith("No such file or directory\n")


PROVEN = [case for case in CASES if case.engine != "openldap"]


@pytest.fixture
def proving_there(client: Client, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The client is the GBS server too: what proves runs in it. A folder that both see by the same name."""
    shared = client.system.directory / "sshd"
    monkeypatch.setattr("tempfile.tempdir", str(shared))
    real = process.run
    monkeypatch.setattr(process, "run", lambda argv, **rest: real([*client.system.enter(), *argv], **rest))
    return shared


@each(PROVEN)
def test_proof_counts_what_the_dump_restores_to(client: Client, case: Case, proving_there: Path) -> None:
    client.prepare(case)
    dump = client.dump(case)
    copy = proving_there / "dump"
    copy.write_bytes(client.outside(dump.path).read_bytes())
    assert proving.tables_of(dump, copy, proving_there, 60) == {"redis": 5000}.get(case.engine, 1)
    copy.write_bytes(copy.read_bytes()[: dump.size_bytes // 2])
    with pytest.raises(DumpFailed, match=f"{case.engine} database '.*' failed: it does not restore: "):
        proving.tables_of(dump, copy, proving_there, 60)
    assert not list(proving_there.glob("*proof-*"))
    assert client.run("pgrep -fc '[p]roof-' || true").strip() == "0"


ORACLE = DumpCommand(
    "oracle main",
    ("sh", "-c", 'echo "$0" > "log a"; seq 1000 | gzip > "$GBS_DUMP_FOLDER"/full.gz', "$(touch /pwned)"),
    ("full.gz", "log a"),
    check=("sh", "-c", 'case $0 in *.gz) gzip -t "$0" ;; esac'),
    restore=("sh", "-c", "gunzip < full.gz > /srv/restored"),
)


def test_command_makes_its_files_and_brings_them_back(client: Client) -> None:
    for _ in range(2):
        dumps = command.dump(client.shell, ORACLE, 0, FOLDER, 30)
        assert [(dump.called, Path(dump.path).name) for dump in dumps] == [
            ("command oracle main", "full.gz"),
            ("command oracle main", "log a"),
        ]
        assert all(content(client, dump) == dump.sha256 for dump in dumps)
    assert client.run(f"ls {FOLDER}/command").count("\n") == 1
    command.restore(client.shell, ORACLE, dumps, 30)
    assert client.run("tail -n 1 /srv/restored") == "1000\n"
    client.run('echo more >> "$1"', dumps[0].path)
    with pytest.raises(RestoreFailed, match=r"^restore of .*sha256 differs"):
        command.restore(client.shell, ORACLE, dumps, 30)
    with pytest.raises(RestoreFailed, match="no restore is declared"):
        command.restore(client.shell, dataclasses.replace(ORACLE, restore=()), dumps, 30)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo no licence >&2; exit 3", "no licence"),
        ("echo x > 'log a'", "it made no file full.gz"),
        ("echo x > 'log a'; : > full.gz", "it made an empty file full.gz"),
        ("echo x > 'log a'; seq 100000 | gzip | head -c 5000 > full.gz", "unexpected end of file"),
        ("sleep 60", "it was stopped after 2 s"),
    ],
)
def test_command_that_does_not_do_its_work_keeps_the_old_files(client: Client, script: str, problem: str) -> None:
    before = command.dump(client.shell, ORACLE, 0, FOLDER, 30)
    with pytest.raises(DumpFailed, match=problem):
        command.dump(client.shell, dataclasses.replace(ORACLE, command=("sh", "-c", script)), 0, FOLDER, 2)
    assert [content(client, dump) for dump in before] == [dump.sha256 for dump in before]


def test_command_is_not_run_when_last_times_files_would_not_fit(client: Client) -> None:
    with pytest.raises(DumpFailed, match="the dump may need"):
        command.dump(client.shell, ORACLE, 1 << 50, FOLDER, 30)


def test_command_past_its_deadline_does_not_go_on_with_its_children(client: Client) -> None:
    slow = ("sh", "-c", "sleep 4171 & sleep 4172")
    with pytest.raises(DumpFailed, match="it was stopped after 1 s"):
        command.dump(client.shell, dataclasses.replace(ORACLE, command=slow), 0, FOLDER, 1)
    assert "sleep 417" not in client.run("cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\\0' ' '")


def test_command_that_is_only_left_alone_is_told_as_timed_out_each_time(client: Client) -> None:
    for _ in range(20):
        with pytest.raises(CommandTimedOut):
            client.shell.run(["sleep", "3"], deadline_s=0.05)


@each(SERVERS)
def test_server_that_is_down_is_told(client: Client, case: Case) -> None:
    client.prepare(case)
    client.system.engine(case.engine, "end")
    try:
        while case.engine in databases.running_engines(client.shell):
            time.sleep(0.1)
        assert not databases.is_ready(client.shell, case.server)
        with pytest.raises(DumpFailed, match=f"{case.engine} on db1"):
            databases.list_databases(client.shell, case.server)
    finally:
        client.system.engine(case.engine, "start")


RECOVERABLE = [case for case in CASES if case.engine in recovering.RECOVERING]


@each(RECOVERABLE)
@pytest.mark.parametrize("hostile", [False, True], ids=["plain", "hostile name"])
def test_dump_is_loaded_under_another_name_beside_the_first(client: Client, case: Case, hostile: bool) -> None:
    client.prepare(case)
    name = case.names[-1 if hostile else 0]
    dump, before = client.dump(case, name), client.system.engine(case.engine, "read_back", name)
    other = f"{name} = 'copy'"
    try:
        recovering.load(client.shell, case.server, dump, other, 60)
        assert recovering.tables(client.shell, case.server, other, 60) == 1
        assert client.system.engine(case.engine, "read_back", other) == before
        client.system.engine(case.engine, "lose", other)
        assert client.system.engine(case.engine, "read_back", name) == before
    finally:
        recovering.drop(client.shell, case.server, other, 60)
    assert other not in databases.list_databases(client.shell, case.server, case.names)


@each(RECOVERABLE)
def test_dump_that_does_not_load_leaves_no_database(client: Client, case: Case) -> None:
    client.prepare(case)
    dump = client.dump(case)
    client.run('truncate -s $(($(stat -c %s "$1") / 2)) "$1"', dump.path)
    with pytest.raises(RestoreFailed, match=r"^restore of .*sha256 differs"):
        recovering.load(client.shell, case.server, dump, "/srv/app/other", 60)
    cut = dump.model_copy(update={"sha256": content(client, dump)})
    if case.engine != "mariadb":  # half of its dump is good SQL
        with pytest.raises(RestoreFailed):
            recovering.load(client.shell, case.server, cut, "/srv/app/other", 60)
    names = databases.list_databases(client.shell, case.server, [case.names[0]])
    assert "/srv/app/other" not in names
    assert client.run("ls /srv/app/other 2>&1 || true").endswith("No such file or directory\n")
    client.dump(case)


@each([case for case in RECOVERABLE if case.engine != "mariadb"])
def test_old_database_is_kept_under_another_name_and_can_be_had_back(client: Client, case: Case) -> None:
    client.prepare(case)
    name = case.names[-1]
    before = client.system.engine(case.engine, "read_back", name)
    aside = recovering.aside_name(case.engine, name, "20261126T220000Z")
    recovering.rename(client.shell, case.server, name, aside, 60)
    try:
        assert client.system.engine(case.engine, "read_back", aside) == before
    finally:
        recovering.rename(client.shell, case.server, aside, name, 60)
    assert client.system.engine(case.engine, "read_back", name) == before


@pytest.mark.parametrize(("engine", "name"), [("postgresql", "locked"), ("mariadb", "sys"), ("sqlite", "/srv/app/own")])
def test_database_that_a_recovery_did_not_make_is_never_dropped(client: Client, engine: EngineName, name: str) -> None:
    case = BY_NAME[engine]
    client.prepare(case)
    if engine == "postgresql":
        sql = "CREATE DATABASE locked ALLOW_CONNECTIONS false"
        client.run('runuser -u postgres -- psql -Xqc "$1"', sql)
    elif engine == "sqlite":
        client.run('sqlite3 "$1" "CREATE TABLE mine (n int)"', name)
    dump = client.dump(case)
    for called in (dump.database, name):  # under its own name, too
        with pytest.raises(RestoreFailed, match="exists"):
            recovering.load(client.shell, case.server, dump.model_copy(update={"database": called}), name, 60)
    asked = {
        "postgresql": "runuser -u postgres -- psql -XAtqc \"SELECT 1 FROM pg_database WHERE datname = 'locked'\"",
        "mariadb": "mariadb -NBe 'SELECT count(*) > 0 FROM information_schema.tables WHERE table_schema = \"sys\"'",
        "sqlite": "sqlite3 /srv/app/own 'SELECT count(*) + 1 FROM mine'",
    }
    assert client.run(asked[engine]) == "1\n"
    assert recovering.is_there(client.shell, case.server, name)
    assert not recovering.is_there(client.shell, case.server, f"{name}2")


_OLDER_POSTGRESQL = """
as() { runuser -u postgres -- psql -Xqd "$1" -c "$2"; }
as postgres "ALTER SYSTEM SET allow_system_table_mods = on"
as postgres "SELECT pg_reload_conf()" > /dev/null
as postgres "ALTER FUNCTION pg_catalog.pg_terminate_backend(int, bigint) RENAME TO pg_newer"
as postgres "CREATE FUNCTION pg_catalog.pg_terminate_backend(int) RETURNS bool LANGUAGE sql AS 'SELECT pg_newer(\\$1)'"
"""
_NEWER_POSTGRESQL = """
as() { runuser -u postgres -- psql -Xqd "$1" -c "$2"; }
as postgres "DROP FUNCTION pg_catalog.pg_terminate_backend(int)"
as postgres "ALTER FUNCTION pg_catalog.pg_newer(int, bigint) RENAME TO pg_terminate_backend"
as postgres "ALTER SYSTEM RESET allow_system_table_mods"
as postgres "SELECT pg_reload_conf()" > /dev/null
"""


def test_postgresql_12_can_rename_and_replace_a_database_that_is_connected_to(client: Client) -> None:
    case, name = BY_NAME["postgresql"], "crm"
    client.prepare(case)
    dump, before = client.dump(case, name), client.system.engine(case.engine, "read_back", name)
    client.instead_of("dropdb", 'for word do [ "$word" != --force ] || exit 1; done; exec "$real" "$@"')
    client.run(_OLDER_POSTGRESQL)
    connected = "runuser -u postgres -- psql -Xqd crm -c 'SELECT pg_sleep(600)' > /dev/null 2>&1 & sleep 1"
    try:
        client.run(connected)
        recovering.rename(client.shell, case.server, name, "crm-old", 60)
        recovering.rename(client.shell, case.server, "crm-old", name, 60)
        client.run(connected)
        databases.restore(client.shell, case.server, [dump], 60)
        client.run(connected)
        recovering.drop(client.shell, case.server, name, 60)
        recovering.load(client.shell, case.server, dump, name, 60)
    finally:
        client.run(_NEWER_POSTGRESQL)
    assert client.system.engine(case.engine, "read_back", name) == before
