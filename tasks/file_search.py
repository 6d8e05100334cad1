"""Files across nights, by their listings alone. Needs no Prefect run."""

import difflib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from tasks.drivers import inventory_file, listings, permanent
from tasks.drivers.digest import read_below
from tasks.drivers.engines.chosen import engine_of
from tasks.drivers.listings import ListedNight
from tasks.errors import IntegrityError, NothingToRecover, RecoveryRefused, StoreError
from tasks.model.file_history import Difference, FileHistory, Found, histories
from tasks.model.inventory import Inventory
from tasks.model.manifest import LISTING
from tasks.model.name_pattern import NamePattern
from tasks.model.night_choice import Night, choose

MOST_TEXT_BYTES = 8 << 20
WHOLE_ONLY = "its backup application gives back whole nights only; see: gbs recover files"
P = ParamSpec("P")
T = TypeVar("T")


def find(client: str, nights: Sequence[Night], pattern: str) -> tuple[list[FileHistory], tuple[str, ...]]:
    """The files that the pattern means, through the client's nights.

    With it the nights that could not be searched, in words. NothingToRecover or StoreError when none could.
    """
    declared, distinct = inventory_file.load(), _distinct(nights)
    wanted = NamePattern(pattern)
    found: dict[str, dict[str, Found]] = {}
    failed: dict[str, Exception] = {}
    for night in distinct:
        try:
            with _listed(declared, client, night) as listed:
                found |= _at(declared, night, listings.search, [listed], wanted)
        except (IntegrityError, NothingToRecover, StoreError, OSError) as exc:
            failed[f"night {night.manifest.id} ({night.name}) was not searched"] = exc
    unsearched = tuple(f"{what}: {exc}" for what, exc in failed.items())
    if not found:
        why = "; ".join(["it has no night whose listing can be read", *unsearched])
        none = NothingToRecover(f"client {client}", why)
        raise next((exc for exc in failed.values() if isinstance(exc, StoreError)), none)
    return histories([*found], found), unsearched


def diff(client: str, nights: Sequence[Night], old: str, new: str, below: str) -> list[Difference]:
    """What differs at and below a path between the nights that two words name (`choose`)."""
    declared = inventory_file.load()
    before, after = choose(client, nights, old), choose(client, nights, new)
    with _listed(declared, client, before) as one, _listed(declared, client, after) as other:
        far = before if _is_far(declared, before) else after
        return _at(declared, far, listings.compare, one, other, below)


def files_at(client: str, nights: Sequence[Night], word: str, below: str) -> dict[str, Found]:
    """The files at and below a path of the night that a word names (`choose`)."""
    declared, night = inventory_file.load(), choose(client, nights, word)
    with _listed(declared, client, night) as listed:
        return _at(declared, night, listings.at, listed, below)


def text_diff(client: str, nights: Sequence[Night], old: str, new: str, path: str) -> list[str]:
    """The lines of a unified diff of a text file between two nights.

    Raises NothingToRecover when a night does not have it, RecoveryRefused for a file that is no text, or large.
    """
    declared = inventory_file.load()
    chosen = [choose(client, nights, word) for word in (old, new)]
    before, after = (_text(declared, client, night, path) for night in chosen)
    one, other = (f"{path} in night {night.manifest.id}" for night in chosen)
    return list(difflib.unified_diff(before, after, one, other, lineterm=""))


def _text(declared: Inventory, client: str, night: Night, path: str) -> list[str]:
    name = path.strip("/")
    if night.folder is None:
        content = engine_of(declared, client).read(night.name, f"data/{name}")
    else:
        content = _at(declared, night, read_below, night.folder / "data", name, MOST_TEXT_BYTES + 1)
    what = f"{path} of night {night.manifest.id}"
    if content is None:
        raise NothingToRecover(what, "there is no such file that can be read alone")
    if len(content) > MOST_TEXT_BYTES or b"\0" in content:
        why = "it is no text" if b"\0" in content else f"it has more than {MOST_TEXT_BYTES >> 20} MiB"
        raise RecoveryRefused(what, why, "recover it from both nights and compare the files")
    return content.decode("utf-8", "surrogateescape").split("\n")


def _distinct(nights: Sequence[Night]) -> list[Night]:
    """Each night once: the overnight copy is nearer than the point that it became."""
    by_id: dict[str, Night] = {}
    for night in nights:
        by_id.setdefault(night.manifest.id, night)
    return list(by_id.values())


@contextmanager
def _listed(declared: Inventory, client: str, night: Night) -> Iterator[ListedNight]:
    """A night with its listing in a folder; NothingToRecover when its engine cannot bring that alone."""
    if night.folder is not None:
        yield ListedNight(night.folder, night.manifest)
        return
    content = engine_of(declared, client).read(night.name, LISTING)
    if content is None:
        raise NothingToRecover(f"night {night.manifest.id}", WHOLE_ONLY)
    with tempfile.TemporaryDirectory(prefix="gbs-listing-") as scratch:
        (Path(scratch) / LISTING).write_bytes(content)
        yield ListedNight(Path(scratch), night.manifest)


def _is_far(declared: Inventory, night: Night) -> bool:
    return night.folder is not None and night.folder.is_relative_to(declared.permanent.path)


def _at(declared: Inventory, night: Night, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that reads a night, by the permanent store's child where it lies there."""
    if _is_far(declared, night):
        return permanent.look(permanent.place_of(declared.permanent), function, *args, **kwargs)
    return partial(function, *args, **kwargs)()
