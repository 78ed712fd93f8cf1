"""The core / wire table: events of an answer beside the bytes of the chat dialect, used both ways.

Our chat renderer and our upstream chat parser are inverses: the renderer must make these bytes of these events, and the
decoder, fed the same bytes in any cut, these events again (without what only one side has: ids on the way in, usage
details that are not on the wire).
"""

from __future__ import annotations

from dataclasses import dataclass

from jubal.core.events import (
    Event,
    Finished,
    Likely,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
)
from jubal.core.usage import Usage

ID = "2f0c9b1e-64d7-4a2c-b1f3-7de0a95c4418"
START = Started(ID, 1_790_000_000, "grok-4", "fp_1f7c0b93de")
HEAD = (
    f'data: {{"id":"chatcmpl-{ID}","object":"chat.completion.chunk","created":1790000000,"model":"grok-4","choices":['
)
TAIL = ',"system_fingerprint":"fp_1f7c0b93de"}\n\n'


def chunk(choice: int, delta: str, reason: str = "null") -> str:
    return f'{HEAD}{{"index":{choice},"delta":{delta},"finish_reason":{reason}}}]{TAIL}'


def usage_chunk(usage: str) -> str:
    return f'{HEAD}],"usage":{usage}{TAIL}'


def usage_json(prompt: int, completion: int, cached: int, reasoning: int, cost: int) -> str:
    return (
        f'{{"prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":{prompt + completion + reasoning},'
        f'"prompt_tokens_details":{{"text_tokens":{prompt},"audio_tokens":0,"image_tokens":0,"cached_tokens":{cached}}},'
        f'"completion_tokens_details":{{"reasoning_tokens":{reasoning},"audio_tokens":0,"accepted_prediction_tokens":0,'
        f'"rejected_prediction_tokens":0}},"num_sources_used":0,"cost_in_usd_ticks":{cost}}}'
    )


DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class Row:
    name: str
    events: tuple[Event, ...]
    frames: tuple[str, ...]
    """Per event, the frames it becomes; all joined are the bytes of the stream."""
    choices: int = 1

    @property
    def bytes(self) -> bytes:
        return "".join(self.frames).encode()


TABLE = (
    Row(
        "one word",
        (START, TextDelta("Hello"), Finished(("stop",), Usage(14, 1, 13), 42)),
        (
            "",
            chunk(0, '{"role":"assistant","content":"Hello"}'),
            chunk(0, "{}", '"stop"') + usage_chunk(usage_json(14, 1, 13, 0, 42)) + DONE,
        ),
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
            chunk(0, '{"role":"assistant","content":"a \\"quote\\"\\n\\\\ "}'),
            chunk(0, '{"content":"\u2028é日本\U0001f98a"}'),
            chunk(0, '{"content":"\\u0000\\u001f"}'),
            chunk(0, "{}", '"length"') + usage_chunk(usage_json(3, 3, 0, 0, 0)) + DONE,
        ),
    ),
    Row(
        "thinking before the answer",
        (
            START,
            ReasoningDelta("I need"),
            ReasoningDelta(" 4."),
            TextDelta("4"),
            Finished(("stop",), Usage(20, 1, 0, 2), 7),
        ),
        (
            "",
            chunk(0, '{"role":"assistant","reasoning_content":"I need"}'),
            chunk(0, '{"reasoning_content":" 4."}'),
            chunk(0, '{"content":"4"}'),
            chunk(0, "{}", '"stop"') + usage_chunk(usage_json(20, 1, 0, 2, 7)) + DONE,
        ),
    ),
    Row(
        "two calls, whole",
        (
            START,
            ToolCall("call_1", "get_weather", '{"location":"Oslo"}'),
            ToolCall("call_2", "get_time", "{}"),
            Finished(("tool_calls",), Usage(180, 24, 179), 1),
        ),
        (
            "",
            chunk(
                0,
                '{"role":"assistant","tool_calls":[{"index":0,"id":"call_1","type":"function",'
                '"function":{"name":"get_weather","arguments":"{\\"location\\":\\"Oslo\\"}"}}]}',
            ),
            chunk(
                0,
                '{"tool_calls":[{"index":1,"id":"call_2","type":"function",'
                '"function":{"name":"get_time","arguments":"{}"}}]}',
            ),
            chunk(0, "{}", '"tool_calls"') + usage_chunk(usage_json(180, 24, 179, 0, 1)) + DONE,
        ),
    ),
    Row(
        "two choices, interleaved",
        (
            START,
            TextDelta("a", 0),
            TextDelta("x", 1),
            TextDelta("b", 0),
            TextDelta("y", 1),
            Finished(("stop", "length"), Usage(5, 4, 0), 0),
        ),
        (
            "",
            chunk(0, '{"role":"assistant","content":"a"}'),
            chunk(1, '{"role":"assistant","content":"x"}'),
            chunk(0, '{"content":"b"}'),
            chunk(1, '{"content":"y"}'),
            chunk(0, "{}", '"stop"') + chunk(1, "{}", '"length"') + usage_chunk(usage_json(5, 4, 0, 0, 0)) + DONE,
        ),
        choices=2,
    ),
    Row(
        "tokens with their probabilities, one of them half a character",
        (
            START,
            TextDelta(
                "Hi",
                0,
                (
                    TokenLogprob(
                        Likely("Hi", -0.25, b"Hi"), (Likely("Hi", -0.25, b"Hi"), Likely("\ufffd", -1.5, b"\xf0\x9f"))
                    ),
                ),
            ),
            TextDelta("!", 0, (TokenLogprob(Likely("!", 0.0)),)),
            Finished(("stop",), Usage(5, 2, 0), 0),
        ),
        (
            "",
            chunk(
                0,
                '{"role":"assistant","content":"Hi"},"logprobs":{"content":[{"token":"Hi","logprob":-0.25,"bytes":[72,105],"top_logprobs":['
                '{"token":"Hi","logprob":-0.25,"bytes":[72,105]},{"token":"\ufffd","logprob":-1.5,"bytes":[240,159]}]}]}',
            ),
            chunk(
                0, '{"content":"!"},"logprobs":{"content":[{"token":"!","logprob":0.0,"bytes":null,"top_logprobs":[]}]}'
            ),
            chunk(0, "{}", '"stop"') + usage_chunk(usage_json(5, 2, 0, 0, 0)) + DONE,
        ),
    ),
    Row(
        "an empty answer still names its role",
        (START, Finished(("stop",), Usage(5, 0, 0), 0)),
        (
            "",
            chunk(0, '{"role":"assistant","content":""}')
            + chunk(0, "{}", '"stop"')
            + usage_chunk(usage_json(5, 0, 0, 0, 0))
            + DONE,
        ),
    ),
)
