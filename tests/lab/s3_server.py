"""An S3 server on a loopback port: OpenStack Swift with its S3 API, all four servers in one process, over TLS.

It is what some providers sell as S3, with signatures proven, and not Amazon's. Debian's python3-swift runs it, on
Debian's own Python: `/usr/bin/python3 tests/lab/s3_server.py FOLDER PORT`, which `S3Server` does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

NAME, KEY = "test:tester", "correct-horse-battery"
_PROXY = """[DEFAULT]
swift_dir = {folder}
[pipeline:main]
pipeline = catch_errors cache s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {key} .admin
[filter:slo]
use = egg:swift#slo
"""
_STORAGE = """[app:main]
use = egg:swift#{kind}
devices = {folder}
mount_check = false
disable_fallocate = true
"""


class S3Server:
    """The server; what it has lies below `folder` and is there again when it is started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.certificate = folder / "certificate.pem"
        if not self.certificate.exists():
            argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
            argv += ["-subj", "/CN=s3", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
            argv += ["-keyout", str(folder / "key.pem"), "-out", str(self.certificate)]
            subprocess.run(argv, check=True, capture_output=True)

    @property
    def url(self) -> str:
        """Where its buckets are."""
        return f"https://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it listens."""
        said = self.folder / "said"
        with said.open("ab") as log:
            argv = ["setpriv", "--pdeathsig", "KILL", "--"]
            argv += ["/usr/bin/python3", __file__, str(self.folder), str(self.port)]
            self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, env={"PATH": os.environ["PATH"]})
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"listening\n":
            raise RuntimeError(f"Swift did not start: {said.read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()


def _serve(folder: Path, port: int) -> None:
    """All of Swift, until it is killed."""
    import eventlet
    from swift.common import utils

    eventlet.monkey_patch()
    from eventlet import wsgi
    from swift.common.http_protocol import SwiftHttpProtocol
    from swift.common.ring import RingBuilder
    from swift.common.wsgi import loadapp

    utils.HASH_PATH_SUFFIX = b"lab"
    (folder / "disk").mkdir(exist_ok=True)

    def spawn(listener: object, config: str, name: str) -> object:
        path = folder / f"{name}.conf"
        path.write_text(config)
        return eventlet.spawn(wsgi.server, listener, loadapp(str(path)), protocol=SwiftHttpProtocol, log_output=False)

    for kind in ("account", "container", "object"):
        listener = eventlet.listen(("127.0.0.1", 0))
        ring = RingBuilder(1, 1, 1)
        where = {"ip": "127.0.0.1", "port": listener.getsockname()[1], "device": "disk"}
        ring.add_dev({"id": 0, "region": 1, "zone": 1, "weight": 1, **where})
        ring.rebalance()
        ring.get_ring().save(str(folder / f"{kind}.ring.gz"))
        spawn(listener, _STORAGE.format(kind=kind, folder=folder), kind)
    listener = eventlet.wrap_ssl(
        eventlet.listen(("127.0.0.1", port)),
        certfile=str(folder / "certificate.pem"),
        keyfile=str(folder / "key.pem"),
        server_side=True,
    )
    proxy = spawn(listener, _PROXY.format(folder=folder, key=KEY), "proxy")
    print("listening", flush=True)
    proxy.wait()  # type: ignore[attr-defined]


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
