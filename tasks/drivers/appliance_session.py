"""libguestfs in a process of its own: the appliance with an image's disks, and what it says meanwhile."""

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from typing import Any, Self

import guestfs

Handle = Any
"""A guestfs.GuestFS: nobody publishes types for it."""


class Reporter:
    """Says every second, as a context, how far the work is: a JSON line on standard output."""

    def __init__(self) -> None:
        self.text: str = "starting the appliance"
        self.part: float | None = None
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def now(self, text: str) -> None:
        """Enter a phase."""
        self.text, self.part = text, None
        self.say(progress=[text, None])

    def say(self, **line: Any) -> None:
        """Write one line."""
        with self._lock:
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()

    def _beat(self) -> None:
        while not self._ended.wait(1):
            self.say(progress=[self.text, self.part])


@contextlib.contextmanager
def launched(request: dict[str, Any], parameters: list[tuple[str, str]], *, readonly: bool) -> Iterator[Handle]:
    """The appliance with the image's disks; always closed, and QEMU with it."""
    handle: Handle = guestfs.GuestFS(python_return_dict=True)
    with contextlib.closing(handle):
        handle.set_tmpdir(request["folder"])
        handle.set_network(False)
        # "unsafe": flushes of the appliance are not worth waiting for, the image is synced once, at the end.
        options = {} if readonly else {"cachemode": "unsafe", "discard": "enable"}
        for path, disk_format in request["disks"]:
            handle.add_drive_opts(path, format=disk_format, readonly=readonly, **options)
        for name, value in parameters:
            handle.config(name, value)
        handle.launch()
        yield handle
