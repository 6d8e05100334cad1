"""Tables as people see them."""

import pytest
from rich.console import Console

from flows.cli import terminal


@pytest.mark.parametrize("width", [40, 80, 200])
def test_table_has_all_its_columns_however_narrow_the_terminal_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setattr(terminal, "out", Console(width=width))
    row = ("web1" * 10, "20261127T121554Z" * 3, "WARNING", "a; " * 60, "it was so " * 9 + "[end]")
    terminal.rows("drills", ("vm", "night", "outcome", "proven by", "reason"), [row], as_json=False)
    said = capsys.readouterr().out
    for word in ("VM", "NIGHT", "OUTCOME", "PROVEN BY", "REASON", *row[:3], "[end]"):
        assert word in said
