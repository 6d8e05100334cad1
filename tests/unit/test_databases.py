"""Database scripts: hostile names stay data. The engines' programs are stubs that record how they were called."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.drivers import databases
from tasks.drivers.databases import recovering, script
from tasks.drivers.ssh import Output
from tasks.errors import CommandFailed, DumpFailed, RestoreFailed
from tasks.model.databases import EngineName, Server
from tasks.model.manifest import DumpRecord

HOSTILE = ["-rf", "a b*", "a'b", 'a"b', "$(touch pwned)`id`;x", "a\\b", "a=b", "é\nz"]
# Writes its name, PGDATABASE, the number of its arguments and these to the log, each ended by NUL; prints its answer.
STUB = """#!/bin/sh
name=${0##*/}
printf '%s\\0' "$name" "${PGDATABASE-}" $# "$@" >> "$GBS_LOG"
if [ "$name" = runuser ]; then shift 3; exec "$@"; fi
if [ -e "$GBS_ANSWERS/$name" ]; then exec cat "$GBS_ANSWERS/$name"; fi
echo 'it failed' >&2
exit 1
"""
STUBBED: list[EngineName] = ["postgresql", "mariadb"]
PROGRAMS = ["runuser", "psql", "pg_dump", "pg_dumpall", "pg_restore", "mariadb", "mariadb-dump"]


class LocalShell:
    """The client is this machine with stubs first on its PATH; commands run as sshd would run them."""

    name = "db1"

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.log, self.answers = folder / "log", folder / "answers"
        self.bin.mkdir()
        self.answers.mkdir()
        self.answer()
        for name in PROGRAMS:
            (self.bin / name).write_text(STUB)
            (self.bin / name).chmod(0o755)

    def answer(self, **programs: str | None) -> None:
        """What programs print; None makes one fail."""
        good = {
            "mariadb-dump": "-- USER\n-- Dump completed",
            "pg_dumpall": "-- PostgreSQL database cluster dump complete",
        }
        given = {name.replace("_x_", "-"): text for name, text in programs.items()}
        for name, text in {**dict.fromkeys(PROGRAMS, "7"), **good, **given}.items():
            (self.answers / name).unlink(missing_ok=True)
            if text is not None:
                (self.answers / name).write_text(f"{text}\n")

    def run(self, command: list[str], *, deadline_s: float, check: bool = True, name: str | None = None) -> Output:
        ours = {"PATH": f"{self.bin}:{os.environ['PATH']}", "GBS_LOG": str(self.log), "GBS_ANSWERS": str(self.answers)}
        env = {**os.environ, **ours}
        done = subprocess.run(command, env=env, cwd=self.folder, capture_output=True, timeout=30, check=False)
        if check and done.returncode:
            raise CommandFailed(name, done.returncode, done.stderr.decode())
        return Output(done.returncode, done.stdout.decode(), done.stderr.decode())

    run_to_end = run

    def calls(self, program: str) -> list[tuple[list[str], str]]:
        """The arguments and PGDATABASE of each call of a program."""
        words, found = self.log.read_bytes().decode().split("\0")[:-1], []
        while words:
            name, database, count, *words = words
            found.append((name, words[: int(count)], database))
            words = words[int(count) :]
        return [(argv, database) for name, argv, database in found if name == program]


@pytest.fixture
def shell(tmp_path: Path) -> Any:
    return LocalShell(tmp_path)


@pytest.mark.parametrize("name", HOSTILE)
def test_postgresql_name_goes_through_the_environment(shell: Any, tmp_path: Path, name: str) -> None:
    made = databases.dump_database(shell, Server("postgresql"), name, 7, str(tmp_path / "dumps"), 30)
    ((argv, database),) = shell.calls("pg_dump")
    assert (argv, database) == (["--format=custom"], name)
    check_record(made, name, tmp_path)


@pytest.mark.parametrize("name", HOSTILE)
def test_mariadb_name_is_one_argument_behind_the_options(shell: Any, tmp_path: Path, name: str) -> None:
    made = databases.dump_database(shell, Server("mariadb"), name, 7, str(tmp_path / "dumps"), 30)
    ((argv, _),) = shell.calls("mariadb-dump")
    assert argv[argv.index("--") :] == ["--", name]
    check_record(made, name, tmp_path)


def check_record(made: DumpRecord, name: str, tmp_path: Path) -> None:
    path = Path(made.path)
    assert made.database == name
    assert path.parent.parent == tmp_path / "dumps"
    assert made.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert made.size_bytes == path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(path.parent.iterdir()) == [path]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("folder", ["a b", "$(touch pwned)", "-rf", "a'b\"c", "back\\slash"])
def test_dump_folder_is_data_too(shell: Any, tmp_path: Path, folder: str) -> None:
    made = databases.dump_database(shell, Server("mariadb"), "d", 7, str(tmp_path / folder), 30)
    assert Path(made.path).is_file()
    assert databases.dump_accounts(shell, Server("mariadb"), str(tmp_path / folder), 30)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("engine", "answers"),
    [
        ("mariadb", {"mariadb_x_dump": None}),
        ("mariadb", {"mariadb_x_dump": "CREATE TABLE x ("}),
        ("postgresql", {"pg_dump": None}),
        ("postgresql", {"pg_restore": None}),
    ],
)
def test_dump_that_fails_keeps_the_old_one(shell: Any, tmp_path: Path, engine: EngineName, answers: dict) -> None:
    folder = str(tmp_path / "dumps")
    before = databases.dump_database(shell, Server(engine), "shop", 7, folder, 30)
    content = Path(before.path).read_bytes()
    shell.answer(**answers)
    with pytest.raises(DumpFailed, match=f"{engine} database 'shop' on db1"):
        databases.dump_database(shell, Server(engine), "shop", 7, folder, 30)
    assert Path(before.path).read_bytes() == content


def test_partial_dump_that_was_left_does_not_stop_the_next(shell: Any, tmp_path: Path) -> None:
    before = databases.dump_database(shell, Server("mariadb"), "shop", 7, str(tmp_path / "dumps"), 30)
    Path(f"{before.path}.partial").write_text("cut")
    databases.dump_database(shell, Server("mariadb"), "shop", 7, str(tmp_path / "dumps"), 30)
    assert [path.name for path in Path(before.path).parent.iterdir()] == [Path(before.path).name]


@pytest.mark.parametrize("engine", STUBBED)
def test_accounts_are_dumped_and_restored_before_databases(shell: Any, tmp_path: Path, engine: EngineName) -> None:
    folder = str(tmp_path / "dumps")
    dumps = [databases.dump_database(shell, Server(engine), "a$(id)", 7, folder, 30)]
    accounts = databases.dump_accounts(shell, Server(engine), folder, 30)
    assert accounts is not None
    dumps.append(accounts)
    shell.log.unlink()
    shell.answer(psql="0")  # connections that are left
    databases.restore(shell, Server(engine), dumps, 30)
    assert shell.log.read_text()
    if engine == "postgresql":
        assert any("db=a$(id)" in argv for argv, _ in shell.calls("psql"))


def test_dump_that_is_not_the_one_that_was_made_is_not_restored(shell: Any, tmp_path: Path) -> None:
    made = databases.dump_database(shell, Server("postgresql"), "shop", 7, str(tmp_path / "dumps"), 30)
    shell.log.unlink()
    shell.log.touch()
    Path(made.path).write_text("something else")
    with pytest.raises(RestoreFailed, match=r"^restore of .*sha256 differs"):
        databases.restore(shell, Server("postgresql"), [made], 30)
    assert shell.calls("pg_restore") == shell.calls("psql") == []


@pytest.mark.parametrize("engine", STUBBED)
def test_names_are_listed_from_hexadecimal_digits(shell: Any, engine: EngineName) -> None:
    lines = "\n".join(f"{name.encode().hex()}\t{size}" for size, name in enumerate(HOSTILE))
    shell.answer(psql=lines, mariadb=lines)
    assert databases.list_databases(shell, Server(engine)) == {name: size for size, name in enumerate(HOSTILE)}


@pytest.mark.parametrize("engine", STUBBED)
@pytest.mark.parametrize("answer", ["73686f70", "shop 7", "73686f70 many", "73686f70 7 7"])
def test_list_that_cannot_be_read_is_told(shell: Any, engine: EngineName, answer: str) -> None:
    shell.answer(psql=answer, mariadb=answer)
    with pytest.raises(DumpFailed, match=f"{engine} on db1"):
        databases.list_databases(shell, Server(engine))


def test_database_that_may_not_fit_is_not_dumped(shell: Any, tmp_path: Path) -> None:
    with pytest.raises(DumpFailed, match=r"bytes and .* inodes free, the dump may need"):
        databases.dump_database(shell, Server("mariadb"), "shop", 1 << 60, str(tmp_path), 30)
    assert not shell.log.exists()


@pytest.mark.parametrize("engine", STUBBED)
def test_server_that_does_not_answer_is_told(shell: Any, engine: EngineName) -> None:
    assert databases.is_ready(shell, Server(engine))
    shell.answer(psql=None, mariadb=None)
    assert not databases.is_ready(shell, Server(engine))
    with pytest.raises(DumpFailed, match=f"{engine} on db1.*it failed"):
        databases.list_databases(shell, Server(engine))


@pytest.mark.parametrize("engine", STUBBED)
def test_server_that_does_not_answer_is_not_one_without_the_database(shell: Any, engine: EngineName) -> None:
    shell.answer(psql=None, mariadb=None)
    shell.target = SimpleNamespace(name="db1")
    with pytest.raises(RestoreFailed, match=f"{engine} database 'shop' on db1.*it failed"):
        recovering.is_there(shell, Server(engine), "shop")
    with pytest.raises(RestoreFailed, match="it failed"):
        recovering.drop(shell, Server(engine), "shop", 30)
    shell.answer(psql="", mariadb="")
    assert not recovering.is_there(shell, Server(engine), "shop")


def test_openldap_whose_configuration_cannot_be_read_has_not_no_databases(shell: Any) -> None:
    (shell.bin / "ps").write_text("#!/bin/sh\necho slapd\n")
    (shell.bin / "slapcat").write_text(STUB)
    for name in ("ps", "slapcat"):
        (shell.bin / name).chmod(0o755)
    with pytest.raises(DumpFailed, match=r"openldap on db1.*it failed"):
        databases.list_databases(shell, Server("openldap"))


def test_script_passes_arguments_as_arguments(tmp_path: Path) -> None:
    argv = script(Server("mariadb"), 'printf "%s|" "$@"', *HOSTILE)
    output = subprocess.run(argv, cwd=tmp_path, capture_output=True, check=True).stdout.decode()
    assert output.split("|")[:-1] == HOSTILE


def test_script_that_uses_what_it_was_not_given_fails() -> None:
    assert (
        subprocess.run(script(Server("mariadb"), 'echo "$2"', "one"), capture_output=True, check=False).returncode != 0
    )
