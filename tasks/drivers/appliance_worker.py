"""The child process that drives libguestfs for `tasks.drivers.appliance`: one JSON request in, JSON lines out."""

import errno
import json
import os
import sys
from typing import Any

from tasks.drivers.appliance_adoption import adopt
from tasks.drivers.appliance_boot import make_bootable
from tasks.drivers.appliance_files import send
from tasks.drivers.appliance_layout import read_shape
from tasks.drivers.appliance_listing import list_files
from tasks.drivers.appliance_session import Reporter
from tasks.drivers.appliance_update import update
from tasks.errors import CommandFailed, GbsError, StoreError, StoreFilled

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_SILENT = (errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN)
"""What a file system says whose disk or server is broken or gone."""
_ANSWERS = {
    "update": update,
    "shape": read_shape,
    "files": send,
    "listing": list_files,
    "adopt": adopt,
    "make bootable": make_bootable,
}


def main() -> int:
    """Answer the request on standard input."""
    request = json.loads(sys.stdin.read())
    with Reporter() as reporter:
        try:
            reporter.say(answer=_ANSWERS[request["do"]](request, reporter))
        except GbsError as error:
            return _fail(reporter, error)
        except (OSError, RuntimeError) as error:  # guestfs raises the second only
            return _fail(reporter, _as_ours(error, request))
    return 0


def _fail(reporter: Reporter, error: GbsError) -> int:
    reporter.say(error=type(error).__name__, attributes=list(error.args))
    return 1


def _as_ours(error: OSError | RuntimeError, request: dict[str, Any]) -> GbsError:
    """StoreError of a file system that does not give a file, StoreFilled of one without room, else CommandFailed."""
    words = str(error)
    if isinstance(error, OSError):
        if error.errno in _NO_ROOM:  # a write names no file; all of them are in the worker's folder
            return StoreFilled(str(error.filename or request["folder"]), str(error.strerror))
        if error.errno in _SILENT and error.filename:
            return StoreError(os.fsdecode(error.filename), f"cannot be read or written: {error.strerror}")
        words = ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    return CommandFailed(f"libguestfs on {request['disks'][0][0]}", 1, words)


if __name__ == "__main__":
    sys.exit(main())
