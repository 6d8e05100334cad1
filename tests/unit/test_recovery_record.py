"""What an operator is told of a recovery that was cut off is a command that is taken."""

import pytest

from tasks.model.recovery_record import what_to_do
from tests.unit.records import put_record


@pytest.mark.parametrize(
    ("physical", "isolated", "networks", "words"),
    [
        (False, False, None, ""),
        (False, False, {"a": "network:b"}, " and its --network"),
        (False, True, {"a": "network:gbs-isolated"}, " --isolated"),
        (True, False, None, " and its --network"),
        (True, True, {"a": "network:gbs-isolated"}, " --isolated and its --network"),
    ],
)
def test_told_command_has_the_options_that_it_needs(
    physical: bool, isolated: bool, networks: dict[str, str] | None, words: str
) -> None:
    record = put_record(vm="db1", name="db1", isolated=isolated, networks=networks)
    command = f"gbs recover {'physical' if physical else 'vm'} db1 --from n --to kvm1{words}"
    assert f"was cut off; {command} removes" in what_to_do(record, physical=physical)
