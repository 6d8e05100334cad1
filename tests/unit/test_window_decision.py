"""The table that decides about the disks of an unfinished window."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.model.window_decision import RULES, Action, Evidence, Job, Power, Source, decide

BASE, OVERLAY, OTHER = Source.BASE, Source.OVERLAY, Source.OTHER
ON, OFF = Power.ON, Power.OFF
CHANGES_AN_IMAGE = {Action.COMMIT, Action.ADOPT, Action.COMMIT_OFFLINE, Action.UNLINK, Action.TRASH}


def ev(power, live, inactive, **more):
    return Evidence(power, live, inactive, more.pop("overlay_exists", True), **more)


# The table of the design, line by line, then the cases that it does not name.
TABLE = [
    (ev(ON, BASE, BASE, settled=True), Action.UNLINK),
    (ev(ON, BASE, BASE), Action.TRASH),
    (ev(OFF, None, BASE, settled=True), Action.UNLINK),
    (ev(OFF, None, BASE), Action.TRASH),
    (ev(ON, BASE, BASE, overlay_exists=False), Action.NOTHING),
    (ev(OFF, None, BASE, overlay_exists=False), Action.NOTHING),
    (ev(ON, OVERLAY, OVERLAY), Action.COMMIT),
    (ev(ON, OVERLAY, None), Action.COMMIT),
    (ev(ON, OVERLAY, OVERLAY, pivot_intended=True), Action.COMMIT),
    (ev(ON, OVERLAY, OVERLAY, job=Job.ACTIVE), Action.ADOPT),
    (ev(ON, OVERLAY, OVERLAY, job=Job.READY), Action.ADOPT),
    (ev(OFF, None, OVERLAY), Action.COMMIT_OFFLINE),
    (ev(OFF, None, OVERLAY, pivot_intended=True), Action.COMMIT_OFFLINE),
    (ev(ON, OVERLAY, OVERLAY, overlay_exists=False), Action.HANDS_OFF),
    (ev(OFF, None, OVERLAY, overlay_exists=False), Action.HANDS_OFF),
    (ev(ON, OTHER, OTHER), Action.HANDS_OFF),
    (ev(ON, OTHER, OVERLAY), Action.HANDS_OFF),
    (ev(OFF, None, OTHER), Action.HANDS_OFF),
    (ev(ON, OVERLAY, OVERLAY, same_uuid=False), Action.HANDS_OFF),
    (ev(Power.ABSENT, None, None), Action.HANDS_OFF),
    # Live and inactive differ.
    (ev(ON, BASE, OVERLAY, pivot_intended=True), Action.REDEFINE),
    (ev(ON, BASE, OVERLAY), Action.HANDS_OFF),
    (ev(ON, OVERLAY, BASE), Action.COMMIT),
    (ev(ON, OVERLAY, BASE, pivot_intended=True), Action.HANDS_OFF),
    (ev(ON, OVERLAY, BASE, settled=True), Action.HANDS_OFF),
    # Doubt about the file, the job, other users of the overlay.
    (ev(ON, OVERLAY, OVERLAY, overlay_proven=False), Action.HANDS_OFF),
    (ev(OFF, None, OVERLAY, overlay_proven=False), Action.HANDS_OFF),
    (ev(ON, BASE, BASE, overlay_proven=False, settled=True), Action.HANDS_OFF),
    (ev(ON, OVERLAY, OVERLAY, job=Job.FOREIGN), Action.HANDS_OFF),
    (ev(ON, BASE, BASE, job=Job.ACTIVE), Action.HANDS_OFF),
    (ev(ON, BASE, BASE, named_elsewhere=True, settled=True), Action.HANDS_OFF),
    (ev(OFF, None, OVERLAY, named_elsewhere=True), Action.HANDS_OFF),
    (ev(OFF, None, OVERLAY, managed_save=True), Action.HANDS_OFF),
    (ev(OFF, None, OVERLAY, settled=True), Action.HANDS_OFF),
    (ev(ON, Source.NO_DISK, Source.NO_DISK), Action.HANDS_OFF),
    (ev(Power.CHANGING, OVERLAY, OVERLAY), Action.WAIT),
]


@pytest.mark.parametrize(("evidence", "action"), TABLE)
def test_decide_follows_the_table(evidence: Evidence, action: Action) -> None:
    assert decide(evidence).action is action


evidences = st.builds(
    Evidence,
    power=st.sampled_from(Power),
    live=st.none() | st.sampled_from(Source),
    inactive=st.none() | st.sampled_from(Source),
    overlay_exists=st.booleans(),
    overlay_proven=st.booleans(),
    job=st.sampled_from(Job),
    pivot_intended=st.booleans(),
    settled=st.booleans(),
    named_elsewhere=st.booleans(),
    managed_save=st.booleans(),
    same_uuid=st.booleans(),
)


def all_evidences():
    flags = [(False, True)] * 7
    sources = (None, *Source)
    for power, live, inactive, job in itertools.product(Power, sources, sources, Job):
        for exists, proven, pivot, settled, elsewhere, saved, same in itertools.product(*flags):
            yield Evidence(power, live, inactive, exists, proven, job, pivot, settled, elsewhere, saved, same)


def test_decide_is_total_and_touches_no_image_without_proof() -> None:
    reached = set()
    for e in all_evidences():
        decision = decide(e)
        assert decision.reason
        assert "{" not in decision.reason
        reached.add(next(index for index, rule in enumerate(RULES) if rule.applies(e)))
        if decision.action not in CHANGES_AN_IMAGE:
            continue
        assert e.same_uuid
        assert e.overlay_exists
        assert e.overlay_proven
        assert not e.named_elsewhere
        assert e.job is not Job.FOREIGN
        named = {source for source in ((e.live if e.power is ON else None), e.inactive) if source is not None}
        if decision.action in (Action.COMMIT, Action.ADOPT):
            assert e.power is ON
            assert e.live is OVERLAY
            assert not e.settled
        elif decision.action is Action.COMMIT_OFFLINE:
            assert e.power is OFF
            assert e.inactive is OVERLAY
            assert not e.settled
        else:
            assert named == {BASE}, "removed only where nothing but the base is named"
            assert (decision.action is Action.UNLINK) == e.settled
            assert e.job is Job.NONE
    assert reached == set(range(len(RULES))), "a rule that never applies"


@given(evidences)
def test_decide_never_commits_what_has_pivoted(evidence: Evidence) -> None:
    running_on_base = evidence.power is ON and evidence.live is BASE
    if evidence.settled or running_on_base:
        assert decide(evidence).action not in (Action.COMMIT, Action.ADOPT, Action.COMMIT_OFFLINE)


@given(evidences)
def test_decide_never_touches_anything_in_doubt(evidence: Evidence) -> None:
    in_doubt = evidence.named_elsewhere or not evidence.overlay_proven or not evidence.same_uuid
    if in_doubt and evidence.overlay_exists:
        assert decide(evidence).action not in CHANGES_AN_IMAGE
