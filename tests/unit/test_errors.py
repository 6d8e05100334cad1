"""Errors: each one pickles, prints as one line, and its class decides the exit code and the retry."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from tasks import errors
from tasks.errors import GbsError, InventoryError, is_transient

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, GbsError)]
LISTS = {
    "InventoryError": ("f", ["p1", "p2"]),
    "UnknownName": ("client", "web9", ["web1", "web2"]),
    "Ambiguous": ("web", ["a", "b"]),
    "RecoveredPartly": ("vm", "host", ["p1"]),
    "DrillFailed": ("vm", ["p1"]),
    "ClientsFailed": (1, 2, ["web1: gone"], []),
}
CODES = {
    "ConfigError": 2,
    "InventoryError": 2,
    "UnknownName": 2,
    "Ambiguous": 2,
    "RecoveredPartly": 3,
    "NothingToRecover": 10,
    "Locked": 11,
    "Unreachable": 75,
    "CommandTimedOut": 75,
    "TransferInterrupted": 75,
    "NotNow": 75,
    "DomainBusy": 75,
    "StoreSilent": 75,
}
TRANSIENT = {
    *("Unreachable", "CommandTimedOut", "TransferInterrupted", "NotNow", "DomainBusy", "StoreSilent", "WriteLost"),
}


def sample(kind: type[GbsError]) -> GbsError:
    fields = 1 + max((int(number) for number in re.findall(r"\{(\d)", kind.template)), default=0)
    return kind(*LISTS.get(kind.__name__, tuple(f"word{number}" for number in range(fields))))


@pytest.mark.parametrize("kind", CLASSES)
class TestEvery:
    def test_error_pickles_whole(self, kind: type[GbsError]) -> None:
        before = sample(kind)
        after = pickle.loads(pickle.dumps(before))
        assert type(after) is kind
        assert (after.args, str(after)) == (before.args, str(before))

    def test_error_prints_all_it_carries_on_one_line(self, kind: type[GbsError]) -> None:
        text = str(sample(kind))
        assert "{" not in text
        assert kind is InventoryError or "\n" not in text
        for number, word in enumerate(sample(kind).args):
            assert not isinstance(word, str) or not word.startswith("word") or word in text, number

    def test_error_says_its_attributes_in_its_docstring(self, kind: type[GbsError]) -> None:
        assert kind.__doc__
        assert kind is GbsError or "(" in kind.__doc__

    def test_error_has_its_exit_code(self, kind: type[GbsError]) -> None:
        assert kind.exit_code == CODES.get(kind.__name__, 1)

    def test_error_is_transient_only_when_a_retry_may_help(self, kind: type[GbsError]) -> None:
        assert is_transient(sample(kind)) is (kind.__name__ in TRANSIENT)


def test_braces_in_a_word_are_data() -> None:
    assert str(errors.Unreachable("{0}", "{}")) == "{0} is unreachable: {}"


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), TimeoutError(), OSError()])
def test_error_of_others_is_never_transient(error: BaseException) -> None:
    assert not is_transient(error)


def test_unknown_name_lists_ten_of_many() -> None:
    text = str(errors.UnknownName("client", "x", [f"c{number:02}" for number in range(25)]))
    assert text.endswith("c09 and 15 more")
    assert str(errors.UnknownName("client", "x", [])).endswith("known are none")
