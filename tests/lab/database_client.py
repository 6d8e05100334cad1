"""A client of the lab with real database servers, each started on demand, on sockets and loopback of its own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab.client_tree import client_tree
from tests.lab.namespaced import Namespaced
from tests.lab.process import LabError

_INIT = Path(__file__).parent / "host" / "client-init.sh"

# Each leaves a server that answers; none listens on a network.
_STARTS = {
    "postgresql": """
        cd /etc/postgresql/*/main
        printf "listen_addresses = ''\nfsync = off\njit = off\nshared_buffers = 16MB\n" >> postgresql.conf
        pg_ctlcluster "$(basename "$(dirname "$PWD")")" main start
        until runuser -u postgres -- pg_isready -q; do sleep 0.1; done
    """,
    "mariadb": """
        install -d -o mysql -g mysql /run/mysqld
        setsid mariadbd --user=mysql --skip-networking --innodb-buffer-pool-size=16M --innodb-log-file-size=8M \\
            >/var/log/mariadbd.log 2>&1 </dev/null &
        until mariadb-admin --silent ping; do sleep 0.1; done
    """,
    "redis": """
        install -d -o redis -g redis /run/redis
        cd /var/lib/redis
        runuser -u redis -- redis-server --port 0 --unixsocket /run/redis/redis-server.sock --save '' \\
            --dir /var/lib/redis --daemonize yes >/dev/null
        until [ "$(redis-cli -s /run/redis/redis-server.sock ping)" = PONG ]; do sleep 0.1; done
    """,
    "openldap": """
        install -d -o openldap -g openldap /run/slapd
        slapd -h ldapi:/// -u openldap -g openldap -F /etc/ldap/slapd.d
        until ldapwhoami -Q -Y EXTERNAL -H ldapi:/// >/dev/null 2>&1; do sleep 0.1; done
    """,
}


@dataclasses.dataclass
class DatabaseClient(Namespaced):
    """A Debian system that dumps are made on. Its root file system is an overlay: what it changes is its own."""

    @property
    def init(self) -> Sequence[str]:
        """Process 1."""
        return [str(_INIT), self.name, str(self.directory), str(client_tree())]

    def prepare(self) -> None:
        """Make the shared tree where it is missing."""
        client_tree()

    def start_engine(self, engine: str, deadline_s: float = 60) -> None:
        """Start a server of `engine` with what its package set up; returns when it answers."""
        began = time.monotonic()
        self.run(["timeout", str(deadline_s), "bash", "-euc", _STARTS[engine]], timeout_s=deadline_s + 10)
        if time.monotonic() - began > deadline_s:
            raise LabError(f"{self.name}: {engine} did not start")

    def shell(self, script: str, *, input_text: str | None = None, check: bool = True) -> str:
        """What a shell script printed inside; LabError when it fails and `check` is set."""
        return self.run(["bash", "-euc", script], input_text=input_text, check=check).stdout
