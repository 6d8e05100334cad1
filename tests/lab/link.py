"""Links of the lab that are slow or dead: what netem would make of loopback, which this kernel may not have.

python3 -m tests.lab.link PORT TO DELAY_S BYTES_PER_S
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.lab.process import LabError, ProcessRecord
from tests.lab.sshd import free_port, wait_for_banner

_CHUNK = 65536
_IN_FLIGHT = 256
"""So many chunks a direction are on their way at once: 16 MiB, far more than delay times bandwidth of any link here."""


@dataclasses.dataclass
class SlowLink:
    """A port on 127.0.0.1 behind which an sshd of the lab is far away (`delay_s` a direction) or hard to reach.

    It is a process of its own, so that it takes no turn of the interpreter of who measures; it outlives who started it
    until `stop`.
    """

    directory: Path
    to_port: int
    delay_s: float = 0.0
    bytes_per_s: int = 0
    port: int = 0

    def start(self) -> None:
        """Run it; returns when the sshd greets through it. LabError when it does not within 20 s."""
        self.stop()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        words = [self.port, self.to_port, self.delay_s, self.bytes_per_s]
        with (self.directory / "link.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.lab.link", *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        ProcessRecord.of(self._process.pid).save(self._record)
        if not wait_for_banner(self.port, 20):
            self.stop()
            raise LabError(f"nothing greets through the link on port {self.port}; see {self.directory}/link.log")

    def stop(self) -> None:
        """End it (also one that an earlier, crashed lab started)."""
        record = ProcessRecord.load(self._record)
        if record is not None:
            record.kill()
        self._record.unlink(missing_ok=True)
        process = getattr(self, "_process", None)
        if process is not None:
            process.wait()

    @property
    def _record(self) -> Path:
        return self.directory / "link.json"


@contextlib.contextmanager
def dead_port() -> Iterator[int]:
    """A port on 127.0.0.1 that answers nobody, as a machine that is off: connecting to it only times out.

    It listens, its queue is full, and nothing is ever taken from it: the kernel drops what comes then (listen(2)).
    """
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", free_port()))
        listener.listen(0)
        port = int(listener.getsockname()[1])
        for _ in range(10):
            filling = sockets.enter_context(socket.socket())
            filling.settimeout(0.2)
            try:
                filling.connect(("127.0.0.1", port))
            except TimeoutError:
                yield port
                return
    raise LabError(f"the queue of port {port} does not fill")


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float, bytes_per_s: int) -> None:
    """One direction: every chunk arrives `delay_s` after it was sent, and no more than `bytes_per_s` are taken."""
    clock = asyncio.get_running_loop().time
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT)

    async def arrive() -> None:
        while True:
            due, chunk = await under_way.get()
            await asyncio.sleep(due - clock())
            if not chunk:
                writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()

    async with asyncio.TaskGroup() as both:
        both.create_task(arrive())
        while chunk := await reader.read(max(1, bytes_per_s // 10) if bytes_per_s else _CHUNK):
            if bytes_per_s:
                await asyncio.sleep(len(chunk) / bytes_per_s)
            await under_way.put((clock() + delay_s, chunk))
        await under_way.put((clock() + delay_s, b""))


async def _serve(port: int, to_port: int, delay_s: float, bytes_per_s: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # What the handshake of TCP would cost: the kernel has answered the client at once.
        await asyncio.sleep(2 * delay_s)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", to_port)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_carry(reader, far_writer, delay_s, bytes_per_s))
                both.create_task(_carry(far_reader, writer, delay_s, bytes_per_s))
        except* OSError:
            pass  # one end broke the connection: so does the other
        finally:
            for end in (writer, far_writer):
                end.close()

    server = await asyncio.start_server(connected, "127.0.0.1", port, backlog=128)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
