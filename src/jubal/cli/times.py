"""Moments and stretches of time as they are typed: `24h`, `30d`, `2026-12-31`, `2026-12-31T12:00Z`."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from jubal.cli.common import CommandError

SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
STRETCH: Final = re.compile(r"(\d{1,7})([smhdw])")
MICRO: Final = 1_000_000


def stretch_us(text: str, flag: str) -> int:
    """`90s`, `45m`, `24h`, `30d`, `2w`. Raises `CommandError` naming the flag."""
    found = STRETCH.fullmatch(text.strip())
    if found is None:
        raise CommandError(f"{flag}: expected a number with s, m, h, d or w, such as 24h; got `{text}`.")
    return int(found[1]) * SECONDS[found[2]] * MICRO


def moment_us(text: str, flag: str, now_us: int, *, sign: int) -> int:
    """A date, a date and time (of this machine's zone unless it names one), or a stretch from now: sign 1 ahead, -1 back.

    Raises `CommandError` naming the flag.
    """
    if STRETCH.fullmatch(text.strip()):
        return now_us + sign * stretch_us(text, flag)
    try:
        moment = datetime.fromisoformat(text.strip())
        return int(moment.astimezone().timestamp() * MICRO)
    except (ValueError, OverflowError, OSError):
        raise CommandError(
            f"{flag}: expected a date such as 2026-12-31, a time such as 2026-12-31T12:00Z, or a stretch such as 30d; "
            f"got `{text}`."
        ) from None
