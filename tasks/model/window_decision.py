"""What may be done about a disk that an unfinished snapshot window left behind: the table, as data.

Commit and removal only ever follow from what libvirt's XML proves: committing an overlay whose disk has already pivoted
destroys guest data (measured on QEMU 7.2), and a VM that died in the window boots on its overlay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Source(StrEnum):
    """What a definition names as the disk's source, measured against the journal."""

    BASE = "the base"
    OVERLAY = "our overlay"
    OTHER = "something else"
    NO_DISK = "no such disk"


class Power(StrEnum):
    """A VM's state as far as its disks care: QEMU runs (also when paused), does not, or is just ending."""

    ON = "running"
    OFF = "shut off"
    CHANGING = "shutting down"
    ABSENT = "not defined"


class Job(StrEnum):
    """The block job on a disk."""

    NONE = "no job"
    ACTIVE = "our commit under way"
    READY = "our commit ready to pivot"
    FOREIGN = "a job that is not our commit"


class Action(StrEnum):
    """What is done about one disk."""

    NOTHING = "nothing"
    COMMIT = "commit"
    ADOPT = "adopt"
    COMMIT_OFFLINE = "commit offline"
    REDEFINE = "redefine"
    UNLINK = "unlink"
    TRASH = "trash"
    START = "start"
    WAIT = "wait"
    HANDS_OFF = "hands off"


@dataclass(frozen=True)
class Evidence:
    """All that is known about one disk of an unfinished window."""

    power: Power
    live: Source | None
    """None unless the VM runs."""
    inactive: Source | None
    """None when the VM has no persistent definition."""
    overlay_exists: bool
    overlay_proven: bool = True
    """The file's header names our base and the inode is the one that was noted, if one was."""
    job: Job = Job.NONE
    pivot_intended: bool = False
    """The journal has the intent of a pivot of this disk. The VM is paused from before it until PIVOTED is written."""
    settled: bool = False
    """PIVOTED, or REDEFINE after an offline commit, was written for this disk."""
    named_elsewhere: bool = False
    """Another definition on this host, or another disk, names the overlay."""
    managed_save: bool = False
    """A saved memory image waits for the next start; it has a definition of its own, which may name the overlay."""
    same_uuid: bool = True


@dataclass(frozen=True)
class Decision:
    """What to do and why, in words for the operator."""

    action: Action
    reason: str


@dataclass(frozen=True)
class Rule:
    """One line of the table: the action, its reason (`{e.…}` is filled in), and when it applies."""

    action: Action
    reason: str
    applies: Callable[[Evidence], bool]


def _on(e: Evidence, live: Source, *inactive: Source | None) -> bool:
    return e.power is Power.ON and e.live is live and e.inactive in inactive


def _off(e: Evidence, inactive: Source) -> bool:
    return e.power is Power.OFF and e.inactive is inactive


def _on_base(e: Evidence) -> bool:
    return _on(e, Source.BASE, Source.BASE, None) or _off(e, Source.BASE)


def _on_overlay(e: Evidence) -> bool:
    return _on(e, Source.OVERLAY, Source.OVERLAY, Source.BASE, None) or _off(e, Source.OVERLAY)


RULES = (
    # Nothing is known about this VM.
    Rule(
        Action.HANDS_OFF,
        "the VM is not defined under its UUID any more",
        lambda e: not e.same_uuid or e.power is Power.ABSENT,
    ),
    Rule(Action.WAIT, "the VM is just shutting down", lambda e: e.power is Power.CHANGING),
    Rule(Action.HANDS_OFF, "{e.job} works on the disk", lambda e: e.job is Job.FOREIGN),
    # On the base already: the overlay, if there is one, is obsolete.
    Rule(Action.HANDS_OFF, "{e.job} works on the base", lambda e: _on_base(e) and e.job is not Job.NONE),
    Rule(Action.NOTHING, "the disk is on its base", lambda e: _on_base(e) and not e.overlay_exists),
    # An overlay that somebody else may need, or that is not the one we made.
    Rule(Action.HANDS_OFF, "another definition names the overlay", lambda e: e.named_elsewhere),
    Rule(
        Action.HANDS_OFF,
        "the overlay's file is missing: do not start the VM, and do not stop it if it runs",
        lambda e: _on_overlay(e) and not e.overlay_exists,
    ),
    Rule(
        Action.HANDS_OFF,
        "the overlay's file is not the one that the journal describes",
        lambda e: e.overlay_exists and not e.overlay_proven,
    ),
    Rule(
        Action.HANDS_OFF,
        "a saved memory image may refer to the overlay: start the VM, then reconcile",
        lambda e: e.power is Power.OFF and e.managed_save,
    ),
    Rule(Action.UNLINK, "the disk has pivoted to its base", lambda e: _on_base(e) and e.settled),
    Rule(Action.TRASH, "the disk is on its base, but no pivot of ours was seen", _on_base),
    # QEMU is on the base; libvirtd died before it wrote that into the definition. Nothing but our pivot explains it.
    Rule(
        Action.REDEFINE,
        "the running VM has pivoted, its definition still names the overlay",
        lambda e: _on(e, Source.BASE, Source.OVERLAY) and e.job is Job.NONE and (e.pivot_intended or e.settled),
    ),
    # On the overlay: it holds guest writes.
    Rule(
        Action.HANDS_OFF,
        "a pivot was begun, the running VM is on the overlay and its definition on the base",
        lambda e: _on(e, Source.OVERLAY, Source.BASE) and (e.pivot_intended or e.settled),
    ),
    Rule(
        Action.HANDS_OFF,
        "the disk had pivoted to its base, and {e.inactive} is defined again",
        lambda e: _on_overlay(e) and e.settled,
    ),
    Rule(
        Action.ADOPT,
        "the VM runs on the overlay, {e.job}",
        lambda e: e.power is Power.ON and _on_overlay(e) and e.job is not Job.NONE,
    ),
    Rule(Action.COMMIT, "the VM runs on the overlay", lambda e: e.power is Power.ON and _on_overlay(e)),
    Rule(Action.COMMIT_OFFLINE, "the VM is shut off on the overlay", _on_overlay),
    Rule(Action.HANDS_OFF, "the running VM has {e.live}, its definition {e.inactive}", lambda e: True),
)


def decide(evidence: Evidence) -> Decision:
    """What may be done about a disk: the first rule that applies, hands off where none proves more (G2). Total."""
    rule = next(rule for rule in RULES if rule.applies(evidence))
    return Decision(rule.action, rule.reason.format(e=evidence))
