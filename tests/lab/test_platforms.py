"""Clients that are no Linux, as far as stand-ins show them; rsync daemon and the store without owners are real."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tasks.drivers import platform_facts, rsync, saveset, ssh, tar_stream
from tasks.drivers.rsync import Transferred, Wanted
from tasks.errors import AccessDenied, CommandFailed, ConfigError, TransferInterrupted
from tasks.model.platform import PROFILES, Platform
from tasks.model.rsync_daemon import DaemonTarget
from tasks.model.ssh_target import SshTarget
from tests.lab.sshd import free_port, make_key
from tests.lab.stand_in import StandIn

StandIns = Callable[[str], tuple[StandIn, SshTarget]]
SECRET = "correct horse battery staple"


@pytest.fixture(scope="module")
def stand_in(lab_folder: Path) -> Iterator[StandIns]:
    """A stand-in of a platform, which runs to the end of the module."""
    made: dict[str, tuple[StandIn, SshTarget]] = {}
    key = make_key(lab_folder / "id_standins", "gbs tests")
    with ExitStack() as ends:

        def of(platform: str) -> tuple[StandIn, SshTarget]:
            if platform not in made:
                system = StandIn(platform, lab_folder / platform, key, platform)
                ends.callback(system.remove)
                system.start()
                made[platform] = system, system.target(lab_folder / "id_standins")
            return made[platform]

        yield of


def fill(system: StandIn, folder: str) -> None:
    system.run(["sh", "-euc", 'mkdir -p "$1/sub"; printf one > "$1/a"; printf two > "$1/sub/b c"', "sh", folder])
    system.run(["sh", "-euc", 'ln -f "$1/a" "$1/sub/linked"; chown 12:34 "$1/a"; chmod 640 "$1/a"', "sh", folder])
    system.run(["find", folder, "-exec", "touch", "--date=@1700000000.123456789", "{}", "+"])


def looks(root: Path) -> bytes:
    argv = ["find", ".", "-type", "f", "-printf", "%P %m %U %G %s %n %T@ ", "-exec", "sha256sum", "{}", ";"]
    listed = subprocess.run(argv, cwd=root, capture_output=True, check=True).stdout
    # Old protocols and formats know whole seconds only.
    return b"\n".join(sorted(listed.replace(b".1234567890", b".0000000000").splitlines()))


@pytest.mark.parametrize(
    ("platform", "name", "system", "report"),
    [
        ("windows", "WIN1", "Microsoft Windows Server 2022 Standard", "disks"),
        ("solaris", "sun1", "SunOS", "network"),
        ("hpux", "hp1", "HP-UX", "file systems"),
        ("openvms", "VAXEN1", "OpenVMS", "disks"),
    ],
)
def test_facts_are_the_words_of_the_platforms_own_tools(
    stand_in: StandIns, platform: str, name: str, system: str, report: str
) -> None:
    _, target = stand_in(platform)
    with ssh.connect(target) as shell:
        facts = platform_facts.collect(shell, Platform(platform), datetime.now(UTC))
    assert (facts.hostname, facts.os_name, facts.os_id) == (name, system, platform)
    assert facts.reports[report]
    assert "boot" not in facts.reports or platform not in ("windows", "openvms"), "what failed is left out"


def test_system_that_is_not_what_was_declared_is_told(stand_in: StandIns) -> None:
    _, target = stand_in("openvms")
    with ssh.connect(target) as shell, pytest.raises(CommandFailed, match="about this Solaris"):
        platform_facts.collect(shell, Platform.SOLARIS, datetime.now(UTC))


@pytest.mark.parametrize("platform", ["solaris", "windows"])
def test_old_rsync_over_ssh_gives_the_tree_and_links_the_unchanged(
    stand_in: StandIns, tmp_path: Path, platform: str
) -> None:
    system, target = stand_in(platform)
    folder = {"solaris": "/export/home", "windows": "/cygdrive/c/Users"}[platform]
    fill(system, folder)
    profile = PROFILES[Platform(platform)]
    wanted = Wanted([folder], options=profile.rsync_options, exclude=profile.exclude)
    rsync.pull(target, wanted, tmp_path / "1", deadline_s=60)
    assert looks(tmp_path / "1" / folder[1:]) == looks(system.inside(folder))
    again = Wanted([folder], options=profile.rsync_options, exclude=profile.exclude, link_dests=[tmp_path / "1"])
    assert rsync.pull(target, again, tmp_path / "2", deadline_s=60).changed == 0
    with pytest.raises(CommandFailed, match="unknown option"):
        rsync.pull(target, Wanted([folder]), tmp_path / "3", deadline_s=60)


@pytest.mark.parametrize("platform", ["solaris", "hpux"])
def test_tar_gives_the_tree_and_links_the_unchanged(
    stand_in: StandIns, tmp_path: Path, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    system, target = stand_in(platform)
    fill(system, "/opt/data $(touch pwned)")

    def pull(night: str, *link_dests: Path) -> Transferred:
        profile = PROFILES[Platform(platform)]
        wanted = Wanted(
            ["/opt/data $(touch pwned)"], options=profile.rsync_options, exclude=["b c"], link_dests=link_dests
        )
        scratch, night_folder = tmp_path / "scratch", tmp_path / night
        return tar_stream.pull(target, profile.tar, wanted, scratch, night_folder, deadline_s=60)

    moved = pull("1")
    assert moved.received_bytes > 0
    copied, original = (root / "opt/data $(touch pwned)" for root in (tmp_path / "1", system.inside("/")))
    (original / "sub/b c").unlink()
    assert looks(copied) == looks(original)
    assert not (tmp_path / "scratch").exists()
    assert pull("2", tmp_path / "1").changed == 0
    assert (tmp_path / "2/opt/data $(touch pwned)/a").stat().st_nlink == 4
    remote = [system.inside(f"{folder}/pwned") for folder in ("", "/root", "/opt")]
    assert not [*tmp_path.rglob("pwned"), *(path for path in remote if path.exists())]
    tar = PROFILES[Platform(platform)].tar
    with pytest.raises(CommandFailed, match="No such file"):
        tar_stream.pull(target, tar, Wanted(["/no such"]), tmp_path / "s", tmp_path / "x", deadline_s=60)


def test_archive_that_is_cut_off_is_no_night(stand_in: StandIns, tmp_path: Path) -> None:
    system, target = stand_in("hpux")
    system.run(["sh", "-c", "mkdir -p /opt/big; head -c 1000000 /dev/urandom > /opt/big/file; touch /cut"])
    try:
        with pytest.raises(CommandFailed, match="Unexpected EOF"):
            tar_stream.pull(
                target, PROFILES[Platform.HPUX].tar, Wanted(["/opt/big"]), tmp_path / "s", tmp_path / "x", deadline_s=60
            )
    finally:
        system.run(["rm", "/cut"])
    assert not (tmp_path / "x").exists()


def test_tar_of_a_system_that_is_away_is_tried_again(stand_in: StandIns, tmp_path: Path) -> None:
    _, target = stand_in("hpux")
    away = SshTarget("hp2", "127.0.0.1", "root", free_port(), target.private_key_file, target.known_hosts_file)
    tar = PROFILES[Platform.HPUX].tar
    with pytest.raises(TransferInterrupted, match="Connection refused"):
        tar_stream.pull(away, tar, Wanted(["/opt"]), tmp_path / "s", tmp_path / "x", deadline_s=60)


def test_saveset_is_made_fetched_and_removed(stand_in: StandIns, tmp_path: Path) -> None:
    system, target = stand_in("openvms")
    system.run(["sh", "-c", "mkdir -p /dka100/gbs /dka100/users/smith; echo data > /dka100/users/smith/login.com"])
    system.run(["sh", "-c", "mkdir -p /dka100/users-smith; echo other > /dka100/users-smith/login.com"])
    with ssh.connect(target) as shell:
        # Two folders whose names differ by a slash only.
        paths = ["/dka100/users/smith", "/dka100/users-smith"]
        moved = saveset.pull(shell, paths, "/dka100/gbs", tmp_path, deadline_s=60)
        saved = list((tmp_path / "dka100/gbs").glob("dka100-users-smith-*.bck"))
        listed = [
            subprocess.run(["tar", "-tf", str(path)], capture_output=True, text=True, check=True).stdout
            for path in saved
        ]
        assert sorted(text.splitlines()[-1] for text in listed) == [f".{path}/login.com" for path in sorted(paths)]
        assert moved.received_bytes == sum(path.stat().st_size for path in saved)
        assert system.run(["ls", "/dka100/gbs"]).stdout == ""
        system.run(["touch", "/dka100/users/unreadable"])
        with pytest.raises(CommandFailed, match="BACKUP-E-OPENIN"):
            saveset.pull(shell, ["/dka100/users"], "/dka100/gbs", tmp_path, deadline_s=60)
        with pytest.raises(CommandFailed, match="BACKUP of /dka100/none"):
            saveset.pull(shell, ["/dka100/none"], "/dka100/gbs", tmp_path, deadline_s=60)


def test_hook_on_windows_is_a_call_of_powershells(stand_in: StandIns) -> None:
    system, target = stand_in("windows")
    with ssh.connect(target) as shell:
        line = PROFILES[Platform.WINDOWS].line(["/usr/bin/touch", "/tmp/it's; $(touch pwned)"])
        shell.run(line, deadline_s=30)
    assert system.run(["ls", "/tmp/it's; $(touch pwned)"]).stdout
    assert system.run(["find", "/root", "/tmp", "-name", "pwned"]).stdout == ""


def test_rsync_daemon_gives_the_tree_to_who_knows_the_password(stand_in: StandIns, tmp_path: Path) -> None:
    system, _ = stand_in("windows")
    fill(system, "/cygdrive/c/Data")
    port = free_port()
    system.start_rsync_daemon(port, "gbs", SECRET)
    secret, wrong = tmp_path / "secret", tmp_path / "wrong"
    for path, text in ((secret, SECRET), (wrong, "a guess")):
        path.write_text(text + "\n")
        path.chmod(0o600)
    daemon = DaemonTarget("win1", "127.0.0.1", port, "all", "gbs", secret)
    rsync.reach(daemon, deadline_s=30)
    moved = rsync.pull(daemon, Wanted(["/cygdrive/c/Data", "/etc/hostname"]), tmp_path / "1", deadline_s=60)
    assert looks(tmp_path / "1/cygdrive/c/Data") == looks(system.inside("/cygdrive/c/Data"))
    assert (tmp_path / "1/etc/hostname").exists()
    assert moved.changed >= 3
    again = Wanted(["/cygdrive/c/Data"], link_dests=[tmp_path / "1"])
    assert rsync.pull(daemon, again, tmp_path / "2", deadline_s=60).changed == 0
    with pytest.raises(AccessDenied, match="refused the login"):
        rsync.pull(DaemonTarget("win1", "127.0.0.1", port, "all", "gbs", wrong), again, tmp_path / "3", deadline_s=60)
    with pytest.raises(ConfigError, match="Unknown module"):
        rsync.pull(DaemonTarget("win1", "127.0.0.1", port, "none", "gbs", secret), again, tmp_path / "4", deadline_s=60)
    with pytest.raises(TransferInterrupted):
        rsync.pull(DaemonTarget("win1", "127.0.0.1", free_port(), "all"), again, tmp_path / "5", deadline_s=60)
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="password file must not be other-accessible"):
        rsync.reach(daemon, deadline_s=30)
