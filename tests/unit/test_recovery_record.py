"""What an operator is told of a recovery that was cut off is a command that is taken."""

import pytest

from tasks.model.recovery_record import PutRecord, what_to_do


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
    record = PutRecord(
        run="r",
        vm="db1",
        kvm_host="kvm1",
        name="db1",
        uuid="u",
        image="i",
        night="n",
        isolated=isolated,
        networks=networks,
        files=(),
    )
    command = f"gbs recover {'physical' if physical else 'vm'} db1 --from n --to kvm1{words}"
    assert f"was cut off; {command} removes" in what_to_do(record, physical=physical)
