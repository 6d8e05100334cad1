"""What GBS costs beside the same work done by hand with the same tools, measured side by side in one run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

from tests.lab.process import LabError


def run(main: Callable[[], int]) -> NoReturn:
    """End the process with what a benchmark returns; what went wrong in the lab is one line."""
    try:
        sys.exit(main())
    except (LabError, subprocess.CalledProcessError) as error:
        sys.exit(f"bench: {error}")
