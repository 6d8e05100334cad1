"""The picture of a VM's console, for people: what it shows is what went wrong when nothing else answers."""

import io
from typing import Any

from PIL import Image, UnidentifiedImageError

from tasks.drivers.libvirt_host import HostDomain
from tasks.errors import HypervisorError

DEADLINE_S = 60


def picture(domain: HostDomain) -> bytes:
    """The first screen of a running VM as PNG; HypervisorError when it has none."""

    def take(handle: Any) -> bytes:
        stream, got = handle.connect().newStream(), io.BytesIO()
        handle.screenshot(stream, 0, 0)
        stream.recvAll(lambda _stream, chunk, _opaque: got.write(chunk), None)
        stream.finish()
        return got.getvalue()

    raw = domain.call("take a picture of the console", take, deadline_s=DEADLINE_S)
    made = io.BytesIO()
    try:
        with Image.open(io.BytesIO(raw)) as shown:
            shown.save(made, "PNG", optimize=True)
    except (UnidentifiedImageError, OSError) as exc:
        raise HypervisorError(domain.name, "take a picture of the console", f"it cannot be read: {exc}") from exc
    return made.getvalue()
