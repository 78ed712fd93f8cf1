"""Values of the management API."""

from __future__ import annotations

import pytest

from jubal.core.errors import BadRequest
from jubal.wire import management as wire


def test_times_beyond_the_calendar_are_told_as_its_end() -> None:
    """A key that was stored so would have kept its whole team from listing its keys."""
    assert wire.stamp(wire.STAMP_US_MAX) == "9999-12-31T23:59:59.999999Z"
    assert wire.stamp(2**63 - 1) == wire.stamp(wire.STAMP_US_MAX)


@pytest.mark.parametrize("text", ["-1", "1.5", "1e3", "\N{ARABIC-INDIC DIGIT THREE}", "9" * 19, " 1", "+1"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        wire.whole(text, "tpm")
    assert caught.value.param == "tpm"


@pytest.mark.parametrize(("text", "number"), [("0", None), ("", None), (None, None), (0, None), ("7", 7), (7, 7)])
def test_whole_numbers(text: str | int | None, number: int | None) -> None:
    assert wire.whole(text, "tpm") == number
