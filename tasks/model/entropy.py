"""Whether a piece of a file looks like chance, as encrypted content does, told by counting its bytes and nothing else.

The measure is the collision entropy (Rényi's of order 2), 8 bits less the logarithm of Friedman's index of coincidence
against that of uniform bytes. Unlike Shannon's entropy of a sample it is not too low for short pieces: that of uniform
bytes is 8 whatever their number, with a standard deviation of 33 / n bits for n bytes. Text has 4 to 5 bits, programs
have 5 to 7, base64 has 6; compressed content mostly stays just below what is taken for chance here.
"""

from collections import Counter
from collections.abc import Sequence
from math import log2

PIECE = 4096
"""So many bytes are looked at in one place."""
LEAST = 256
"""Fewer bytes say nothing."""
PLAIN_BITS = 7.0
DEVIATIONS = 5
COMPRESSED = {
    b".gz": b"\x1f\x8b\x08",
    b".bz2": b"BZh",
    b".xz": b"\xfd7zXZ\x00",
    b".zst": b"\x28\xb5\x2f\xfd",
}
"""What compressors that do not encrypt call their files and begin them with: rotated logs, kernel modules."""


def bits(piece: bytes) -> float:
    """The collision entropy of at least two bytes, in bits per byte."""
    pairs = sum(count * (count - 1) for count in Counter(piece).values())
    return 8 - log2(256 * max(pairs, 1) / (len(piece) * (len(piece) - 1)))


def random_looking(piece: bytes) -> bool:
    """Whether uniform bytes would hardly look less like chance than these do."""
    return len(piece) >= LEAST and bits(piece) >= 8 - DEVIATIONS * 33 / len(piece)


def plain(piece: bytes) -> bool:
    """Whether it is far from chance: neither encrypted nor compressed."""
    return len(piece) >= LEAST and bits(piece) <= PLAIN_BITS


def scrambled(before: Sequence[bytes], after: Sequence[bytes]) -> bool:
    """Whether a piece that was plain looks like chance now; the pieces are of the same places of a file.

    One is enough: to be quick, ransomware may encrypt only the beginning of a file, or every other stretch of it.
    """
    return any(plain(old) and random_looking(new) for old, new in zip(before, after, strict=False))


def compressed(name: bytes, head: bytes) -> bool:
    """Whether it is called and begins as what a compressor makes that cannot encrypt."""
    return any(name.endswith(ending) and head.startswith(magic) for ending, magic in COMPRESSED.items())
