"""Stand-ins for systems that no laboratory has: Debian with the login shell, the programs and the paths of another.

They show that GBS speaks as such a system is spoken to. They do not show that the system answers as they do.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from tests.lab.database_client import DatabaseClient

_PROGRAMS = Path(__file__).parent / "standins"
_LOGIN = {"solaris": "unix.sh", "hpux": "unix.sh", "openvms": "openvms.sh", "windows": "windows.sh"}


@dataclasses.dataclass
class StandIn(DatabaseClient):
    """A client that answers over ssh as `platform` does. `run` runs what it is told on the Debian below."""

    platform: str = "solaris"

    def __post_init__(self) -> None:
        login = f"/standin/{_LOGIN[self.platform]} {self.platform}"
        self.authorized_key = f'command="{login}" {self.authorized_key}'
        super().__post_init__()

    def prepare(self) -> None:
        """Lay its programs over the shared tree."""
        super().prepare()
        shutil.copytree(_PROGRAMS, self.directory / "upper/standin", dirs_exist_ok=True)

    def inside(self, path: str) -> Path:
        """Where the machine sees a file of the client's that was made since it started."""
        return self.directory / "upper" / path.lstrip("/")

    def start_rsync_daemon(self, port: int, user: str, password: str) -> None:
        """Run a real rsync daemon whose module `all` begins at the root."""
        config = f"""
            port = {port}
            address = 127.0.0.1
            use chroot = no
            pid file = /run/rsyncd.pid
            [all]
            path = /
            uid = 0
            gid = 0
            read only = yes
            auth users = {user}
            secrets file = /etc/rsyncd.secrets
        """
        self.run(["sh", "-c", "cat > /etc/rsyncd.conf; rm -f /run/rsyncd.pid", "sh"], input_text=config)
        secret = "umask 077; cat > /etc/rsyncd.secrets; rsync --daemon --config=/etc/rsyncd.conf"
        self.run(["sh", "-c", secret, "sh"], input_text=f"{user}:{password}\n")
