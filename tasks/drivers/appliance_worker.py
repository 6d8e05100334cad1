"""The child process that drives libguestfs for `tasks.drivers.appliance`: one JSON request in, JSON lines out."""

import json
import sys

from tasks.drivers.appliance_adoption import adopt
from tasks.drivers.appliance_boot import make_bootable
from tasks.drivers.appliance_files import send
from tasks.drivers.appliance_layout import read_shape
from tasks.drivers.appliance_listing import list_files
from tasks.drivers.appliance_session import Reporter
from tasks.drivers.appliance_update import update
from tasks.errors import GbsError

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
    reporter = Reporter()
    try:
        reporter.say(answer=_ANSWERS[request["do"]](request, reporter))
    except GbsError as error:
        reporter.say(error=type(error).__name__, attributes=list(error.args))
        return 1
    except OSError as error:  # of the night or of what the worker writes: guestfs raises none
        words = f"cannot be read or written: {error.strerror}"
        reporter.say(error="StoreError", attributes=[str(error.filename), words])
        return 1
    except RuntimeError as error:  # all that guestfs raises
        reporter.say(error="CommandFailed", attributes=[f"libguestfs on {request['disks'][0][0]}", 1, str(error)])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
