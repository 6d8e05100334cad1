"""What is in a client's nights, and what an attack makes of it."""

from __future__ import annotations

import io
import random
import subprocess
from collections.abc import Callable

FILES = 60
Tree = dict[str, bytes]


def plain_tree(version: int = 0) -> Tree:
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "back", "again"]
    tree = {}
    for number in range(FILES):
        choice = random.Random(number)
        text = f"version {version} of {number}\n" + " ".join(choice.choice(words) for _ in range(400))
        tree[f"file-{number}.txt"] = text.encode()
    return tree


def encrypted(tree: Tree, only: Callable[[int], bool] = lambda _: True, ending: str = "") -> Tree:
    """As openssl makes it of the content; what it was called before is gone when there is an ending."""
    chosen = [name for number, name in enumerate(tree) if only(number)]
    argv = ["openssl", "enc", "-aes-256-ctr", "-pbkdf2", "-k", "key", "-nosalt"]
    content = b"".join(tree[name] for name in chosen)
    stream = io.BytesIO(subprocess.run(argv, input=content, capture_output=True, check=True).stdout)
    turned = {name + ending: stream.read(len(tree[name])) for name in chosen}
    return {name: content for name, content in tree.items() if name not in chosen} | turned
