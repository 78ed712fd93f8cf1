"""What a text is made of, in a model's own vocabulary."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text.

    id: in the vocabulary of the engine's model. bytes: what it stands for, which can be a part of a character; those of all
    tokens in a row are the UTF-8 of the text. text: the same as text, with U+FFFD for what is no whole character.
    """

    id: int
    text: str
    bytes: bytes
