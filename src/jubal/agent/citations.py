"""Inline citations: the model writes `[1]`, the reader gets `[[1]](url)` and its place in the text (xai-api.md 9.6)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from jubal.core.events import Citation, TextDelta
from jubal.core.server_tools import Source

INSTRUCTIONS: Final = (
    "When you state something that you found with a tool, cite it right after the statement by its number in square "
    "brackets, such as [1]. Use only numbers that a tool gave you."
)
_MARK: Final = re.compile(r"\[\[(\d{1,3})\]\](?:\([^()\s]*\))?|\[(\d{1,3})\](?:\([^()\s]*\))?")
_LINK: Final = r"(?:\([^()\s]{0,2048})?"
_BEGINNING: Final = re.compile(rf"\[(?:\[(?:\d{{0,3}}|\d{{1,3}}\]|\d{{1,3}}\]\]{_LINK})|\d{{0,3}}|\d{{1,3}}\]{_LINK})$")
"""What may still become a mark when more text comes, up to the end of what is there."""


class Citer:
    """Feeds on the text of one choice, cut anywhere. sources: by number from 1; may grow meanwhile."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._held = ""
        self._length = 0

    def feed(self, delta: TextDelta) -> Iterator[TextDelta | Citation]:
        """The same text with its marks made whole; a mark that is not all there yet is held back."""
        if not self._held and "[" not in delta.text:
            self._length += len(delta.text)
            yield delta
            return
        pieces = list(self._scan(self._held + delta.text, delta.choice, final=False))
        if delta.logprobs:
            self._attach(pieces, delta)
        yield from pieces

    def finish(self, choice: int) -> Iterator[TextDelta | Citation]:
        """The text is over."""
        held, self._held = self._held, ""
        yield from self._scan(held, choice, final=True)

    def _scan(self, text: str, choice: int, *, final: bool) -> Iterator[TextDelta | Citation]:
        self._held = ""
        while text:
            place = text.find("[")
            if place < 0:
                yield self._said(text, choice)
                return
            if place > 0:
                yield self._said(text[:place], choice)
                text = text[place:]
            if not final and _BEGINNING.match(text):
                self._held = text
                return
            mark = _MARK.match(text)
            source = self._source(mark)
            if mark is None or source is None:
                yield self._said(mark.group() if mark else "[", choice)
                text = text[mark.end() if mark else 1 :]
                continue
            number = int(mark.group(1) or mark.group(2))
            start = self._length
            yield self._said(f"[[{number}]]({source.url})", choice)
            yield Citation(number, source, start, self._length, choice)
            text = text[mark.end() :]

    def _source(self, mark: re.Match[str] | None) -> Source | None:
        number = int(mark.group(1) or mark.group(2)) if mark else 0
        return self._sources[number - 1] if 0 < number <= len(self._sources) else None

    def _said(self, text: str, choice: int) -> TextDelta:
        self._length += len(text)
        return TextDelta(text, choice)

    @staticmethod
    def _attach(pieces: list[TextDelta | Citation], delta: TextDelta) -> None:
        """Probabilities stay with the tokens that came, whatever became of their text."""
        for place, piece in enumerate(pieces):
            if isinstance(piece, TextDelta):
                pieces[place] = replace(piece, logprobs=delta.logprobs)
                return
