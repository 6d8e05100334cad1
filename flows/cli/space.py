"""`gbs space`: how full the stores are, until when, what saves room, and what each client costs."""

import json
from dataclasses import asdict
from datetime import UTC, datetime

import click

from flows.cli import terminal
from tasks import space
from tasks.model.names import human_age, human_bytes
from tasks.model.space import NOT_MEASURED
from tasks.space import ClientSpace, StoreSpace


@click.command("space")
@click.option("--deep", is_flag=True, help="Walk everything in both stores first; on a large store that takes long.")
@terminal.json_option
def space_command(deep: bool, as_json: bool) -> int:
    """How full the store and the permanent store are, and when they will be; what each mechanism and client comes to.

    Without --deep what the folders come to is what was measured last. Each night notes how full the stores are.
    Exit code 3 when one is out of reach, below its reserve, or full within two weeks.
    """
    found = space.survey(deep=deep)
    if as_json:
        print(json.dumps(asdict(found), indent=1, default=_plain))
        return 0 if found.good else 3
    _stores(found.stores)
    _savings(found.stores)
    _owners(found.owners)
    for store in found.stores:
        for remark in store.remarks:
            terminal.err.print(f"{store.name}: {remark}", markup=False)
        for doubt in store.doubts:
            terminal.err.print(f"{store.name}: {doubt}", style="yellow", markup=False)
    return 0 if found.good else 3


def _plain(value: object) -> object:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if dump else str(value)


def _stores(stores: tuple[StoreSpace, ...]) -> None:
    body = []
    for row in stores:
        room = row.room
        if room is None:
            body.append((row.name, row.path, "out of reach", "", "", "", "", "", _full(row)))
            continue
        body.append(
            (
                *(row.name, row.path, room.fstype + (" on VDO" if room.vdo else "")),
                *(human_bytes(room.taken_bytes + room.left_bytes), human_bytes(room.taken_bytes)),
                *(human_bytes(room.left_bytes), human_bytes(row.reserve_bytes) if row.reserve_bytes else ""),
                *("as needed" if room.free_inodes is None else f"{room.free_inodes:,}", _full(row)),
            )
        )
    columns = ("store", "at", "on", "size", "used", "free", "reserve", "inodes free", "full in")
    terminal.rows("stores", columns, body, False)
    terminal.out.print()


def _full(row: StoreSpace) -> str:
    days, a_day, reason = row.outlook.days, row.outlook.a_day, row.outlook.reason
    grows = f", {human_bytes(a_day)} a day" if a_day else ""
    return f"not known: {reason}{grows}" if days is None else f"{human_age(days * 86400)}: {reason}{grows}"


def _savings(stores: tuple[StoreSpace, ...]) -> None:
    body = [
        (
            *(store.name, row.mechanism, _bytes(row.saved_bytes), _percent(row.saved_bytes, row.left_bytes)),
            *(_bytes(row.left_bytes), row.note or _measured(store)),
        )
        for store in stores
        for row in store.savings
    ]
    terminal.rows("what saves room", ("store", "by", "saves", "%", "leaves", "note"), body, False)
    terminal.out.print()


def _measured(store: StoreSpace) -> str:
    return f"measured {human_age((datetime.now(UTC) - store.measured).total_seconds())} ago" if store.measured else ""


def _owners(owners: tuple[ClientSpace, ...]) -> None:
    body = [
        (
            *(row.owner, _bytes(row.each_bytes), _bytes(row.store_bytes), _bytes(row.permanent_bytes)),
            _bytes(row.last_night.new_bytes if row.last_night else None),
            f"{_bytes(row.newest_point_bytes)} ({row.newest_point})" if row.newest_point else "",
            _bytes(row.given_up_bytes or None),
        )
        for row in owners
    ]
    columns = ("whose", "each copy alone", "own in store", "own in permanent", "last night", "newest point", "in trash")
    title = "what each costs (own: what would be free without it)"
    if all(row.each_bytes is None for row in owners):
        title = f"what each costs ({NOT_MEASURED})"
    terminal.rows(title, columns, body, False)


def _bytes(size_bytes: int | None) -> str:
    return "" if size_bytes is None else human_bytes(size_bytes)


def _percent(saved: int | None, left: int | None) -> str:
    return f"{100 * saved / (saved + left):.0f}" if saved is not None and left is not None and saved + left else ""
