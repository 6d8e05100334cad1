"""What a window will cost, said before it is opened: how long the copy takes, and what the guest writes meanwhile."""

from dataclasses import dataclass

DEFAULT_BYTES_PER_S = 30 << 20
"""What is expected of a copy when no image of the VM tells how fast one went: rather too little."""
_MARGIN = 2


@dataclass(frozen=True)
class Budget:
    """The expected length of a window in seconds, and the room that each disk's overlay should have in bytes."""

    copy_s: float
    overlay_bytes: int


def expect(
    allocated_bytes: int, bytes_per_s: float | None, written_bytes_per_s: float, largest_disk_bytes: int
) -> Budget:
    """What copying so much will take, and twice what the guest would write meanwhile at its present rate.

    An overlay never grows beyond the disk that it lies on.
    """
    copy_s = allocated_bytes / (bytes_per_s or DEFAULT_BYTES_PER_S)
    return Budget(copy_s, min(int(_MARGIN * copy_s * written_bytes_per_s), largest_disk_bytes))
