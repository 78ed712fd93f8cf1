"""A conversation made short: the model writes a summary, which is sealed and stands for all before it (xai-api.md 8.10, 23.5)."""

from __future__ import annotations

from typing import Final

from jubal.core.generation import Bounds, Generation, Message, TextPart

SUMMARY_TOKENS_MAX: Final = 512
_SUMMARISE: Final = (
    "Write a summary of the conversation so far, for yourself: it will stand in its place when the conversation goes on. Keep "
    "facts, names, numbers, decisions, and what the user wants. Write the summary only."
)


def summary_of(model: str, messages: tuple[Message, ...]) -> Generation:
    """What has to be answered to make a conversation short."""
    asked = (*messages, Message("user", (TextPart(_SUMMARISE),)))
    return Generation(model, asked, bounds=Bounds(SUMMARY_TOKENS_MAX), live=False)


def shortened(messages: list[Message], summary: str) -> list[Message]:
    """The conversation with a summary in its place. What the system said stays."""
    systems = [message for message in messages if message.role in ("system", "developer")]
    return [*systems, Message("user", (TextPart(f"Summary of the conversation so far:\n{summary}"),))]
