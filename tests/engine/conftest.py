"""Which sequences of a test ran on compiled steps."""

import pytest

from rnn_blocks.engine import background, fused


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each sequence ran on compiled steps."""
    found: list[bool] = []

    def spied(*arguments):
        program = background.faster(*arguments)
        found.append(program is not None)
        return program

    monkeypatch.setattr(fused, "faster", spied)
    monkeypatch.setattr(background, "START", 10)
    monkeypatch.setattr(background, "SWITCH", 22)
    monkeypatch.setattr(background, "_told", False)
    return found
