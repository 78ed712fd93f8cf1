"""The core / wire table of the legacy completions dialect, used both ways like chat_table.py."""

from __future__ import annotations

from jubal.core.events import Finished, Likely, Started, TextDelta, TokenLogprob
from jubal.core.usage import Usage
from tests.chat_table import DONE, ID, Row, usage_json

START = Started(ID, 1_790_000_000, "grok-4", "fp_1f7c0b93de")
HEAD = f'data: {{"id":"cmpl-{ID}","object":"text_completion","created":1790000000,"model":"grok-4","choices":['
TAIL = ',"system_fingerprint":"fp_1f7c0b93de"}\n\n'


def chunk(choice: int, text: str, reason: str = "null", logprobs: str = "null") -> str:
    return f'{HEAD}{{"index":{choice},"text":{text},"logprobs":{logprobs},"finish_reason":{reason}}}]{TAIL}'


def usage_chunk(usage: str) -> str:
    return f'{HEAD}],"usage":{usage}{TAIL}'


PARIS = Likely(" Paris", -0.25)
THE = Likely(" the", -2.5)
HALF = Likely("\ufffd", -1.5, b"\xf0\x9f")
FOX = Likely("\U0001f98a", 0.0)

TABLE = (
    Row(
        "one word",
        (START, TextDelta("Hello"), Finished(("stop",), Usage(14, 1, 13), 42)),
        ("", chunk(0, '"Hello"'), chunk(0, '""', '"stop"') + usage_chunk(usage_json(14, 1, 13, 0, 42)) + DONE),
    ),
    Row(
        "characters that JSON escapes, and some that it need not",
        (
            START,
            TextDelta('a "quote"\n\\ '),
            TextDelta("\u2028é日本\U0001f98a"),
            TextDelta("\x00\x1f"),
            Finished(("length",), Usage(3, 3, 0), 0),
        ),
        (
            "",
            chunk(0, '"a \\"quote\\"\\n\\\\ "'),
            chunk(0, '"\u2028é日本\U0001f98a"'),
            chunk(0, '"\\u0000\\u001f"'),
            chunk(0, '""', '"length"') + usage_chunk(usage_json(3, 3, 0, 0, 0)) + DONE,
        ),
    ),
    Row(
        "two choices, interleaved",
        (
            START,
            TextDelta("a", 0),
            TextDelta("x", 1),
            TextDelta("b", 0),
            Finished(("stop", "length"), Usage(5, 3, 0), 0),
        ),
        (
            "",
            chunk(0, '"a"'),
            chunk(1, '"x"'),
            chunk(0, '"b"'),
            chunk(0, '""', '"stop"') + chunk(1, '""', '"length"') + usage_chunk(usage_json(5, 3, 0, 0, 0)) + DONE,
        ),
        choices=2,
    ),
    Row(
        "tokens with their probabilities, one of them half a character",
        (
            START,
            TextDelta(" Paris", 0, (TokenLogprob(PARIS, (PARIS, THE)),)),
            TextDelta("\U0001f98a.", 0, (TokenLogprob(FOX, (FOX, HALF)), TokenLogprob(THE, (PARIS, THE)))),
            Finished(("stop",), Usage(5, 3, 0), 0),
        ),
        (
            "",
            chunk(
                0,
                '" Paris"',
                logprobs='{"tokens":[" Paris"],"token_logprobs":[-0.25],"top_logprobs":[{" Paris":-0.25," the":-2.5}],"text_offset":[0]}',
            ),
            chunk(
                0,
                '"\U0001f98a."',
                logprobs='{"tokens":["\U0001f98a"," the"],"token_logprobs":[0.0,-2.5],'
                '"top_logprobs":[{"\U0001f98a":0.0,"bytes:\\\\xf0\\\\x9f":-1.5},{" Paris":-0.25," the":-2.5}],"text_offset":[6,7]}',
            ),
            chunk(0, '""', '"stop"') + usage_chunk(usage_json(5, 3, 0, 0, 0)) + DONE,
        ),
    ),
    Row(
        "an empty answer",
        (START, Finished(("stop",), Usage(5, 0, 0), 0)),
        ("", chunk(0, '""', '"stop"') + usage_chunk(usage_json(5, 0, 0, 0, 0)) + DONE),
    ),
)
