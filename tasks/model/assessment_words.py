"""An assessment in words: rows of a table for the terminal and for Prefect's UI."""

from collections.abc import Iterator
from datetime import datetime

from tasks.model.assessment import Assessment
from tasks.model.names import human_age

Row = tuple[str, str, str]


def rows(assessment: Assessment) -> list[Row]:
    """What, which, and what is to be said of it (age, way, reason), in the order in which it is read."""
    return [*_used(assessment), *_placed(assessment), *_times(assessment), *_found(assessment)]


def _age(assessment: Assessment, then: datetime | None) -> str:
    return f"{human_age((assessment.assessed - then).total_seconds())} old" if then else "age unknown"


def _used(assessment: Assessment) -> Iterator[Row]:
    yield "image", assessment.image, _age(assessment, assessment.image_instant)
    night = f"{assessment.night_name} ({assessment.night})"
    yield "files of night", night, _age(assessment, assessment.night_ended)
    definition = f"from the backup data of {assessment.definition}"
    yield "definition", definition, _age(assessment, assessment.definition_ended)
    for database in assessment.databases:
        yield "dump", database, _age(assessment, assessment.night_ended)


def _placed(assessment: Assessment) -> Iterator[Row]:
    plan, identity = assessment.plan, assessment.plan.identity
    yield "becomes", f"VM {identity.name} on {plan.kvm_host}", f"UUID {identity.uuid}"
    for place in plan.places:
        kind = f"volume {place.volume}" if place.volume else place.format
        yield place.role, place.path, kind
    for old, new in identity.macs.items():
        yield "MAC", new, f"in place of {old}"
    for old, new in (plan.networks or {}).items():
        yield "network", new, f"in place of {old}"
    for what in assessment.dropped:
        yield "dropped", what, "not known to be safe on another host"


def _times(assessment: Assessment) -> Iterator[Row]:
    for step in assessment.expected:
        yield "takes", step.step, f"{human_age(step.seconds)} ({step.by})" if step.seconds is not None else step.by
    more = f", and the unknown: {', '.join(assessment.unknown)}" if assessment.unknown else ""
    yield "takes", "all of it", f"{human_age(assessment.known_s)}{more}"


def _found(assessment: Assessment) -> Iterator[Row]:
    for verdict in ("note", "missing", "refused"):
        for finding in assessment.findings:
            if finding.verdict == verdict:
                yield verdict.upper(), finding.subject, finding.reason + (f"; {finding.fix}" if finding.fix else "")


def markdown(assessment: Assessment) -> str:
    """The rows as a table of Markdown's; names are data and cannot break out of it."""
    lines = ["| what | which | |", "|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows(assessment))])


def _cell(text: str) -> str:
    escaped = "".join(f"\\{char}" if char in "\\`*_{}[]<>|#" else char for char in text)
    return " ".join(escaped.split())
