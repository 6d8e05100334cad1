"""What a client runs: how a command is called there, what its copy tools can do, and what tells of it.

Linux has facts of its own (tasks.model.facts). Of any other system its own tools' words are kept, for the person who
builds it again.
"""

import base64
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Platform(StrEnum):
    """What a client runs."""

    LINUX = "linux"
    WINDOWS = "windows"
    SOLARIS = "solaris"
    HPUX = "hpux"
    OPENVMS = "openvms"


class Transport(StrEnum):
    """How files come from a client."""

    SSH = "ssh"
    """rsync over ssh."""
    DAEMON = "rsync-daemon"
    """rsync from a daemon on the client, without ssh: passwords are hashed, files travel in clear."""
    TAR = "tar"
    """The client's tar over ssh, where there is no rsync: everything travels, what is unchanged is linked here."""
    SAVESET = "saveset"
    """A saveset by OpenVMS's BACKUP, fetched by sftp."""


@dataclass(frozen=True)
class Profile:
    """What GBS knows of a platform. The first of `transports` is used unless the inventory says otherwise."""

    title: str
    tried: str
    """Against what it was tried: what `gbs check` and the docs say."""
    transports: tuple[Transport, ...]
    line: Callable[[Sequence[str]], str]
    """An argv as a command line of the login shell."""
    rsync_options: tuple[str, ...]
    """What rsync is asked to keep of files."""
    exclude: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    tar: tuple[str, ...] = ()
    about: str = ""
    """A command line that prints four lines: system, host name, version, architecture."""
    reports: Mapping[str, str] = field(default_factory=dict)
    """Command lines whose output is kept with the facts, by name."""


def powershell(script: str) -> str:
    """The command line that runs a script; encoded, so that cmd.exe, PowerShell and Cygwin's bash all leave it alone.

    Its errors end it (about_Preference_Variables), and its status is the one of the last program.
    """
    whole = f"$ErrorActionPreference = 'Stop'\n{script}\nexit $LASTEXITCODE\n"
    encoded = base64.b64encode(whole.encode("utf-16-le")).decode("ascii")
    return f"powershell.exe -NoLogo -NoProfile -NonInteractive -EncodedCommand {encoded}"


def _powershell_call(argv: Sequence[str]) -> str:
    quoted = ("'" + re.sub("(['\u2018\u2019\u201a\u201b])", r"\1\1", word) + "'" for word in argv)
    return powershell(f"& {' '.join(quoted)}")


def dcl(argv: Sequence[str]) -> str:
    """A DCL command: what is no plain word goes between quotation marks, which are doubled within."""
    plain = re.compile(r"[A-Za-z0-9$_:;.,*\[\]<>/=+-]+")
    return " ".join(word if plain.fullmatch(word) else '"' + word.replace('"', '""') + '"' for word in argv)


_PLAIN = ("--archive", "--hard-links", "--sparse", "--numeric-ids")
"""Without ACLs and extended attributes, which old rsyncs and those of other systems do not know."""
_UNIX_ABOUT = "uname -s; uname -n; uname -r; uname -m"

PROFILES: dict[Platform, Profile] = {
    Platform.LINUX: Profile(
        title="Linux",
        tried="real systems",
        transports=(Transport.SSH, Transport.DAEMON),
        line=shlex.join,
        rsync_options=(*_PLAIN, "--acls", "--xattrs"),
        exclude=(
            *("/proc/*", "/sys/*", "/dev/*", "/run/*"),
            *("/tmp/*", "/var/tmp/*", "/var/cache/apt/archives/*.deb"),  # noqa: S108 - patterns, not files of ours
            *("/swapfile", "/swap.img", "lost+found"),
        ),
        tools=("rsync", "lsblk", "findmnt", "sha256sum", "df", "stat"),
    ),
    Platform.WINDOWS: Profile(
        title="Windows",
        tried="a stand-in only: a Linux sshd and rsync daemon with Cygwin's paths and a powershell.exe that answers",
        transports=(Transport.SSH, Transport.DAEMON),
        line=_powershell_call,
        rsync_options=_PLAIN,
        exclude=(
            *("pagefile.sys", "hiberfil.sys", "swapfile.sys", "DumpStack.log.tmp"),
            *("System Volume Information", "$Recycle.Bin", "/cygdrive/*/Windows/Temp/*"),
            *("/cygdrive/*/Users/*/AppData/Local/Temp/*", "/cygdrive/*/Windows/SoftwareDistribution/Download/*"),
        ),
        about=powershell(
            "$os = Get-CimInstance Win32_OperatingSystem\n"
            "$os.Caption; $env:COMPUTERNAME; $os.Version; $env:PROCESSOR_ARCHITECTURE"
        ),
        reports={
            "disks": powershell("Get-Disk | Format-List *; Get-Partition | Format-List *; Get-Volume | Format-List *"),
            "boot": powershell("bcdedit.exe /enum all"),
            "network": powershell("ipconfig.exe /all; route.exe print"),
            "software": powershell(
                r"Get-ItemProperty HKLM:\Software\Microsoft\Windows\CurrentVersion\Uninstall\* |"
                " Format-Table -AutoSize DisplayName, DisplayVersion"
            ),
            "services": powershell("Get-Service | Format-Table -AutoSize Name, StartType, Status"),
        },
    ),
    Platform.SOLARIS: Profile(
        title="Solaris",
        tried="a stand-in only: a Linux sshd with Solaris's uname and an rsync of protocol 29 without ACLs and xattrs",
        transports=(Transport.SSH, Transport.TAR),
        line=shlex.join,
        rsync_options=_PLAIN,
        exclude=(
            *("/proc/*", "/devices/*", "/dev/*", "/system/*", "/tmp/*", "/var/run/*"),  # noqa: S108
            *("/etc/mnttab", "/etc/dfs/sharetab", "/var/tmp/*", "core", "lost+found"),  # noqa: S108
        ),
        tools=("uname", "df"),
        # E: long names and large files (extended headers, tar(1)).
        tar=("tar", "cEf", "-"),
        about=_UNIX_ABOUT,
        reports={
            "release": "cat /etc/release",
            "disks": "iostat -En",
            "partitions": "for disk in /dev/rdsk/*s2; do prtvtoc $disk; done",
            "file systems": "df -k; cat /etc/vfstab",
            "zfs": "zpool status; zfs list -o name,mountpoint,used,avail",
            "boot": "eeprom; bootadm list-menu",
            "network": "ifconfig -a; netstat -rn; cat /etc/resolv.conf",
            "packages": "pkg list -H 2> /dev/null || pkginfo -l",
        },
    ),
    Platform.HPUX: Profile(
        title="HP-UX",
        tried="a stand-in only: a Linux sshd with HP-UX's uname, and no rsync on it",
        transports=(Transport.TAR, Transport.SSH),
        line=shlex.join,
        rsync_options=_PLAIN,
        exclude=("/dev/*", "/net/*", "/tmp/*", "/var/tmp/*", "/var/adm/crash/*", "core", "lost+found"),  # noqa: S108
        tools=("uname", "bdf"),
        tar=("tar", "cf", "-"),
        about=_UNIX_ABOUT,
        reports={
            "disks": "ioscan -fnkC disk",
            "file systems": "bdf -l; cat /etc/fstab",
            "lvm": "vgdisplay -v; lvlnboot -v",
            "boot": "setboot",
            "network": "netstat -in; netstat -rn; cat /etc/rc.config.d/netconf",
            "packages": "swlist -l product",
        },
    ),
    Platform.OPENVMS: Profile(
        title="OpenVMS",
        tried="a stand-in only: an sshd with sftp and a DCL that knows BACKUP and DELETE",
        transports=(Transport.SAVESET, Transport.SSH),
        line=dcl,
        rsync_options=_PLAIN,
        about=(
            'PIPE WRITE SYS$OUTPUT "OpenVMS" ; WRITE SYS$OUTPUT F$GETSYI("NODENAME") ;'
            ' WRITE SYS$OUTPUT F$GETSYI("VERSION") ; WRITE SYS$OUTPUT F$GETSYI("ARCH_NAME")'
        ),
        reports={
            "disks": "SHOW DEVICE D/FULL",
            "system": "SHOW SYSTEM/NOPROCESS",
            "network": "TCPIP SHOW INTERFACE/FULL",
            "packages": "PRODUCT SHOW PRODUCT",
            "licenses": "SHOW LICENSE",
        },
    ),
}
