"""The legacy completions dialect: what it takes, what it refuses, and its stream both ways."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jubal.core.errors import BadRequest, ContextTooLong, EngineBroken, EngineUnavailable
from jubal.core.events import (
    Event,
    Failed,
    Finished,
    Likely,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    TurnEnded,
    UsageSoFar,
)
from jubal.core.fold import Folder
from jubal.core.generation import Bounds, Generation, Sampling
from jubal.core.grammar import ANSWER, Checker
from jubal.core.tally import estimate_prompt
from jubal.core.usage import Usage
from jubal.engines.openai_text import TextDecoder
from jubal.wire import openai_errors
from jubal.wire.base import Dialect
from jubal.wire.openai_completions import CompletionsAsked, OpenAICompletions, TextRenderer
from tests.chat_table import Row
from tests.completions_table import PARIS, START, TABLE, THE

DIALECT = OpenAICompletions()


def parse(**fields: Any) -> CompletionsAsked:
    return DIALECT.parse(json.dumps({"model": "grok-4", "prompt": "Once", **fields}).encode())


# ---------------------------------------------------------------------------------------------- the request


def test_is_a_dialect() -> None:
    dialect: Dialect = DIALECT
    assert dialect.endpoint == "sample"
    assert dialect.parse(b'{"model":"m","prompt":"p"}').deferral is None


def test_the_least() -> None:
    assert parse().generation == Generation(
        "grok-4", (), bounds=Bounds(16), live=False, reasoning="none", prompts=("Once",)
    )


def test_everything_at_once() -> None:
    asked = parse(
        prompt=["Once upon"], max_tokens=7, n=3, best_of=3, echo=True, seed=1, stop=["a", "b"], stream=True,
        stream_options={"include_usage": True}, temperature=0, top_p=1, frequency_penalty=2, presence_penalty=-2,
        logit_bias={"50256": -100}, suffix="", user="u", logprobs=False,
    )  # fmt: skip
    assert asked.generation == Generation(
        "grok-4",
        (),
        Sampling(0, 1, 2, -2, 1, ("a", "b"), ((50256, -100),)),
        Bounds(7),
        3,
        live=True,
        user="u",
        reasoning="none",
        prompts=("Once upon",),
    )


def test_nulls_mean_unset_and_unknown_fields_are_ignored() -> None:
    names = "max_tokens temperature top_p frequency_penalty presence_penalty stop seed n best_of echo suffix logprobs logit_bias stream stream_options user"
    assert parse(**dict.fromkeys(names.split()), made_up=[1]).generation == parse().generation


@pytest.mark.parametrize(("given", "wanted"), [(True, 0), (False, None), (0, 0), (1, 1), (5, 5), (None, None)])
def test_logprobs_are_a_number_or_a_wish(given: int | None, wanted: int | None) -> None:
    assert parse(logprobs=given).generation.logprobs == wanted


def test_the_prompt_keeps_every_character_and_is_counted() -> None:
    odd = "\x00\u2028\U0001f98a\ufffe "
    assert parse(prompt=odd).generation.prompts == (odd,)
    assert estimate_prompt(parse(prompt="a" * 400).generation) == 100
    assert estimate_prompt(parse(prompt=["a" * 400, "b" * 4]).generation) == 101
    assert estimate_prompt(parse(prompt=[[1, 2], [3]]).generation) == 3


FORMS: list[tuple[object, tuple[object, ...]]] = [
    ("a", ("a",)),
    (["a"], ("a",)),
    (["a", "b"], ("a", "b")),
    ([1, 2], ((1, 2),)),
    ([[1, 2]], ((1, 2),)),
    ([[1, 2], [0]], ((1, 2), (0,))),
]


@pytest.mark.parametrize(("given", "prompts"), FORMS)
def test_the_forms_of_a_prompt(given: object, prompts: tuple[object, ...]) -> None:
    generation = parse(prompt=given, n=3).generation
    assert generation.prompts == prompts
    assert (generation.choices, generation.answers) == (3, 3 * len(prompts))


def test_a_suffix() -> None:
    assert parse(suffix="end").generation.suffix == "end"
    assert parse(suffix="").generation.suffix is None


BAD: list[tuple[dict[str, Any], str, int]] = [
    ({"model": None}, "model", 422),
    ({"model": ""}, "model", 400),
    ({"prompt": None}, "prompt", 422),
    ({"prompt": 7}, "prompt", 422),
    ({"prompt": {}}, "prompt", 422),
    ({"prompt": ""}, "prompt", 400),
    ({"prompt": []}, "prompt", 400),
    ({"prompt": [""]}, "prompt", 400),
    ({"prompt": ["a", ""]}, "prompt[1]", 400),
    ({"prompt": ["a", 7]}, "prompt", 400),
    ({"prompt": [7, "a"]}, "prompt", 400),
    ({"prompt": ["a", [7]]}, "prompt", 400),
    ({"prompt": [[7], "a"]}, "prompt", 400),
    ({"prompt": [[7], 7]}, "prompt", 400),
    ({"prompt": [7, [7]]}, "prompt", 400),
    ({"prompt": [[]]}, "prompt", 400),
    ({"prompt": [[7], []]}, "prompt[1]", 400),
    ({"prompt": [-1]}, "prompt", 400),
    ({"prompt": [2**31]}, "prompt", 400),
    ({"prompt": [[7], [2**31]]}, "prompt[1]", 400),
    ({"prompt": [True]}, "prompt[0]", 422),
    ({"prompt": [1.5]}, "prompt[0]", 422),
    ({"prompt": [[True]]}, "prompt[0][0]", 422),
    ({"prompt": ["a"] * 129}, "prompt", 400),
    ({"prompt": ["a", "b"], "n": 65}, "prompt", 400),
    ({"prompt": [7], "echo": True}, "echo", 400),
    ({"max_tokens": True}, "max_tokens", 422),
    ({"max_tokens": "7"}, "max_tokens", 422),
    ({"top_p": "x"}, "top_p", 422),
    ({"top_p": -0.1}, "top_p", 400),
    ({"temperature": -0.1}, "temperature", 400),
    ({"frequency_penalty": "x"}, "frequency_penalty", 422),
    ({"frequency_penalty": -2.5}, "frequency_penalty", 400),
    ({"presence_penalty": "x"}, "presence_penalty", 422),
    ({"presence_penalty": 2.5}, "presence_penalty", 400),
    ({"seed": "x"}, "seed", 422),
    ({"seed": 1.5}, "seed", 422),
    ({"seed": -(2**63) - 1}, "seed", 400),
    ({"stop": 7}, "stop", 422),
    ({"stop": [7]}, "stop[0]", 422),
    ({"stop": [""]}, "stop", 400),
    ({"n": 1.5}, "n", 422),
    ({"n": True}, "n", 422),
    ({"n": -1}, "n", 400),
    ({"best_of": -1}, "best_of", 400),
    ({"best_of": 1.5}, "best_of", 422),
    ({"logprobs": []}, "logprobs", 422),
    ({"logit_bias": []}, "logit_bias", 422),
    ({"logit_bias": {"5": "x"}}, "logit_bias[0]", 422),
    ({"logit_bias": {"-5": 1}}, "logit_bias", 400),
    ({"stream_options": 7}, "stream_options", 422),
    ({"model": 7}, "model", 422),
    ({"prompt": [None]}, "prompt[0]", 422),
    ({"prompt": [["a"]]}, "prompt[0][0]", 422),
    ({"max_tokens": 0}, "max_tokens", 400),
    ({"max_tokens": 1.5}, "max_tokens", 422),
    ({"n": 0}, "n", 400),
    ({"n": 129}, "n", 400),
    ({"n": "two"}, "n", 422),
    ({"best_of": 129}, "best_of", 400),
    ({"best_of": 0}, "best_of", 400),
    ({"best_of": 2, "n": 3}, "best_of", 400),
    ({"best_of": "all"}, "best_of", 422),
    ({"echo": "yes"}, "echo", 422),
    ({"echo": True, "logprobs": 1}, "echo", 400),
    ({"suffix": 7}, "suffix", 422),
    ({"logprobs": 6}, "logprobs", 400),
    ({"logprobs": -1}, "logprobs", 400),
    ({"logprobs": "all"}, "logprobs", 422),
    ({"logprobs": 0.5}, "logprobs", 422),
    ({"temperature": 2.1}, "temperature", 400),
    ({"temperature": "hot"}, "temperature", 422),
    ({"top_p": 1.1}, "top_p", 400),
    ({"frequency_penalty": 2.5}, "frequency_penalty", 400),
    ({"presence_penalty": -2.5}, "presence_penalty", 400),
    ({"seed": 2**63}, "seed", 400),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", 400),
    ({"stop": ""}, "stop", 400),
    ({"logit_bias": {"x": 1}}, "logit_bias", 400),
    ({"logit_bias": {"5": 101}}, "logit_bias", 400),
    ({"stream": "yes"}, "stream", 422),
    ({"stream_options": {"include_usage": True}}, "stream_options", 400),
    ({"stream": True, "stream_options": {"include_usage": "x"}}, "stream_options.include_usage", 422),
    ({"user": 7}, "user", 422),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param", "status"), BAD, ids=[f"{param}-{n}" for n, (_, param, _) in enumerate(BAD)]
)
def test_bad_input_names_the_field(fields: dict[str, Any], param: str, status: int) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    reply = openai_errors.reply(caught.value)
    error = json.loads(reply.body)["error"]
    # msgspec does not count places in a list: `prompt[...]`
    assert error["param"].replace("[...]", "[0]") == param
    assert (reply.status, error["type"]) == (status, "invalid_request_error")
    assert error["param"] in error["message"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=8,
)
FIELDS = "model prompt max_tokens n best_of echo suffix logprobs logit_bias stop stream stream_options seed top_p x"
fields = st.sampled_from(FIELDS.split())


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(fields, values, max_size=5), st.booleans())
def test_any_json_is_a_generation_or_a_bad_request(body: dict[str, Any], filled: bool) -> None:
    if filled:
        body = {"model": "m", "prompt": "p", **body}
    try:
        asked = DIALECT.parse(json.dumps(body).encode())
    except BadRequest as error:
        assert 400 <= openai_errors.reply(error).status < 500
    else:
        assert asked.generation.prompts
        asked.renderer()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_generation_or_a_bad_request(body: bytes) -> None:
    try:
        DIALECT.parse(body)
    except BadRequest:
        pass


# ---------------------------------------------------------------------------------------------- the stream, both ways

rows = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)


def renderer(*, echo: tuple[str, ...] = (), logprobs: int = 2, include_usage: bool = True) -> TextRenderer:
    return TextRenderer(echo=echo, logprobs=logprobs, include_usage=include_usage)


@rows
def test_events_become_these_bytes(row: Row) -> None:
    one = renderer()
    assert [one.feed(event).decode() for event in row.events] == list(row.frames)


@rows
@pytest.mark.parametrize("size", [1, 2, 7, 100_000])
def test_these_bytes_become_the_events(row: Row, size: int) -> None:
    decoder = TextDecoder(row.choices)
    events: list[object] = []
    for place in range(0, len(row.bytes), size):
        events += decoder.feed(row.bytes[place : place + size])
    events += decoder.finish()
    assert events == [
        TurnEnded(event.reasons, event.usage) if isinstance(event, Finished) else event
        for event in row.events
        if not isinstance(event, Started)
    ]


@rows
def test_the_table_obeys_the_grammar(row: Row) -> None:
    checker = Checker(ANSWER, row.choices)
    for event in row.events:
        checker.see(event)
    checker.end()


def folded(asked: CompletionsAsked, *events: Event) -> dict[str, Any]:
    folder = Folder()
    for event in events:
        folder.feed(event)
    assert folder.completion is not None
    body: dict[str, Any] = json.loads(asked.whole(folder.completion))
    return body


@rows
def test_a_whole_answer_is_the_fold_of_the_stream(row: Row) -> None:
    body = folded(parse(logprobs=2), *row.events)
    chunks = [json.loads(line[6:]) for line in row.bytes.decode().split("\n\n") if line.startswith("data: {")]
    for index, choice in enumerate(body["choices"]):
        pieces = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert choice["text"] == "".join(piece["text"] for piece in pieces)
        assert choice["finish_reason"] == pieces[-1]["finish_reason"]
        told = [piece["logprobs"] for piece in pieces if piece["logprobs"]]
        if told:
            assert choice["logprobs"] == {name: [value for one in told for value in one[name]] for name in told[0]}
        else:
            assert choice["logprobs"] is None
    assert body["usage"] == chunks[-1]["usage"]
    assert body["object"] == chunks[0]["object"] == "text_completion"
    for name in ("id", "created", "model", "system_fingerprint"):
        assert body[name] == chunks[0][name]


@rows
def test_a_whole_answer_is_read_back(row: Row) -> None:
    body = json.dumps(folded(parse(logprobs=2), *row.events)).encode()
    events = list(TextDecoder(row.choices).whole(body))
    for index in range(row.choices):
        said = [event for event in row.events if isinstance(event, TextDelta) and event.choice == index]
        read = [event for event in events if isinstance(event, TextDelta) and event.choice == index]
        assert "".join(event.text for event in read) == "".join(event.text for event in said)
        assert [one for event in read for one in event.logprobs] == [one for event in said for one in event.logprobs]
    end = row.events[-1]
    assert isinstance(end, Finished)
    assert events[-1] == TurnEnded(end.reasons, end.usage)


def test_echo_says_the_prompt_first_in_every_choice() -> None:
    asked = parse(prompt="Once ", echo=True, n=2, stream=True)
    events: list[Event] = [START, TextDelta("a"), TextDelta("b"), Finished(("stop", "stop"), Usage(1, 2), None)]
    one = asked.renderer()
    frames = b"".join(one.feed(event) for event in events).decode()
    chunks = [json.loads(line[6:]) for line in frames.split("\n\n") if line.startswith("data: {")]
    texts = [[c["text"] for chunk in chunks for c in chunk["choices"] if c["index"] == index] for index in (0, 1)]
    assert texts == [["Once ", "a", "b", ""], ["Once ", ""]]
    assert [choice["text"] for choice in folded(asked, *events)["choices"]] == ["Once ab", "Once "]


def test_several_prompts_are_said_back_each_before_its_own_choices() -> None:
    asked = parse(prompt=["P ", "Q "], echo=True, n=2, stream=True)
    events: list[Event] = [
        START,
        TextDelta("d", 3),
        TextDelta("a"),
        TextDelta("c", 2),
        Finished(("stop", "length", "stop", "stop"), Usage(2, 3), None),
    ]
    one = asked.renderer()
    frames = b"".join(one.feed(event) for event in events).decode()
    chunks = [json.loads(line[6:]) for line in frames.split("\n\n") if line.startswith("data: {")]
    streamed = [
        "".join(c["text"] for chunk in chunks for c in chunk["choices"] if c["index"] == index) for index in range(4)
    ]
    body = folded(asked, *events)
    assert [choice["text"] for choice in body["choices"]] == streamed == ["P a", "P ", "Q c", "Q d"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", "length", "stop", "stop"]


def test_no_chunk_without_choices_unless_usage_was_asked_for() -> None:
    one = renderer(include_usage=False)
    frames = b"".join(one.feed(event) for event in TABLE[0].events)
    assert b'"choices":[]' not in frames
    assert frames.endswith(b"data: [DONE]\n\n")


def test_as_many_likely_tokens_as_were_asked_for_and_always_the_chosen_one() -> None:
    rare = Likely(" rare", -9.0)
    events = (
        START,
        TextDelta(" rare", 0, (TokenLogprob(rare, (PARIS, THE)),)),
        Finished(("stop",), Usage(1, 1), None),
    )

    def tops(wanted: object) -> object:
        return folded(parse(logprobs=wanted), *events)["choices"][0]["logprobs"]["top_logprobs"]

    assert tops(5) == [{" Paris": -0.25, " the": -2.5, " rare": -9.0}]
    assert tops(1) == [{" Paris": -0.25, " rare": -9.0}]
    assert tops(0) is None
    assert tops(True) is None


def test_offsets_are_characters_of_the_text_also_across_halves_of_one() -> None:
    fox = "\U0001f98a".encode()
    halves = [
        TokenLogprob(Likely("\ufffd", -1.0, fox[:2])),
        TokenLogprob(Likely("\ufffd", -1.0, fox[2:])),
        TokenLogprob(Likely("!", -1.0, b"!")),
    ]
    body = folded(
        parse(logprobs=0), START, TextDelta("\U0001f98a!", 0, tuple(halves)), Finished(("stop",), Usage(1, 3), None)
    )
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["bytes:\\xf0\\x9f", "bytes:\\xa6\\x8a", "!"],
        "token_logprobs": [-1.0, -1.0, -1.0],
        "top_logprobs": None,
        "text_offset": [0, 0, 1],
    }


def test_a_failure_in_the_middle_is_said_and_not_done() -> None:
    one = renderer()
    one.feed(START)
    one.feed(TextDelta("half"))
    frame = one.feed(Failed(EngineUnavailable("gone", retry_after_s=3)))
    assert json.loads(frame[6:]) == {"error": {"message": "gone", "type": "engine_error", "code": "engine_unavailable"}}
    assert b"[DONE]" not in frame


def test_what_is_too_long_is_the_prompt() -> None:
    error = ContextTooLong("too long", param="messages")
    assert json.loads(DIALECT.error(error).body)["error"]["param"] == "prompt"


def test_what_has_no_place_here_is_left_out() -> None:
    one = renderer()
    one.feed(START)
    for event in (ReasoningDelta("hm"), ToolCall("c", "f", "{}"), UsageSoFar(Usage(1, 1))):
        assert one.feed(event) == b""


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.builds(TextDelta, texts, st.integers(0, 1)), max_size=8), st.data())
def test_what_is_rendered_is_read_back_in_any_cut(said: list[TextDelta], data: st.DataObject) -> None:
    one = renderer()
    events: list[Event] = [START, *said, Finished(("stop", "length"), Usage(9, 8, 7), 5)]
    wire = b"".join(one.feed(event) for event in events)
    decoder = TextDecoder(2)
    seen: list[object] = []
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        seen += decoder.feed(wire[:size])
        wire = wire[size:]
    seen += decoder.finish()
    assert seen == [*said, TurnEnded(("stop", "length"), Usage(9, 8, 7))]


def test_the_decoder_tells_a_cut_stream_from_a_whole_one() -> None:
    decoder = TextDecoder(1)
    list(decoder.feed(TABLE[0].frames[1].encode()))
    with pytest.raises(EngineBroken):
        list(decoder.finish())


# ---------------------------------------------------------------------------------------------- the best of several


def of(choice: int, text: str, *logprobs: float) -> TextDelta:
    return TextDelta(text, choice, tuple(TokenLogprob(Likely("x", one)) for one in logprobs))


SEVERAL = [
    Started("i", 1, "m", "fp_0000000000"),
    of(0, "bad", -4.0),
    of(1, "long and good", -0.1, -0.3, -0.2),
    of(2, "good", -0.1),
    of(3, "good too", -0.3),
    of(4, "bad", -1.0),
    of(5, "best", -0.2),
]


def test_the_likeliest_answers_of_each_prompt_are_given() -> None:
    """By the mean of their tokens: a long answer is not worse for being long."""
    asked = parse(prompt=["a", "b"], best_of=3, n=2, echo=True)
    assert (asked.generation.choices, asked.generation.logprobs) == (3, 0)
    end = Finished(("length", "stop", "stop", "stop", "stop", "stop"), Usage(2, 60))
    body = folded(asked, *SEVERAL, end)
    assert [(one["index"], one["text"]) for one in body["choices"]] == [
        (0, "agood"), (1, "along and good"), (2, "bbest"), (3, "bgood too"),
    ]  # fmt: skip
    assert [one["logprobs"] for one in body["choices"]] == [None] * 4, "nobody asked for them"
    assert body["usage"]["completion_tokens"] == 60, "all that were made are paid for"


def test_an_engine_that_tells_no_probabilities_gives_its_first() -> None:
    asked = parse(best_of=2)
    events = [SEVERAL[0], TextDelta("one"), TextDelta("two", 1), Finished(("stop", "stop"), Usage(1, 2))]
    assert [one["text"] for one in folded(asked, *events)["choices"]] == ["one"]


def test_as_many_as_are_wanted_keep_their_order() -> None:
    asked = parse(best_of=2, n=2, logprobs=1)
    end = Finished(("stop", "stop"), Usage(1, 2))
    body = folded(asked, SEVERAL[0], of(0, "bad", -4.0), of(1, "good", -0.1), end)
    assert [one["text"] for one in body["choices"]] == ["bad", "good"]
    assert body["choices"][0]["logprobs"]["token_logprobs"] == [-4.0]


@pytest.mark.parametrize("fields", [{"best_of": 2}, {"best_of": 3, "n": 2}])
def test_the_best_can_not_be_streamed(fields: dict[str, int]) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**fields, stream=True)
    assert caught.value.param == "best_of"
    assert parse(best_of=2, n=2, stream=True).generation.choices == 2


def test_candidates_count_as_answers() -> None:
    with pytest.raises(BadRequest, match="more than 128"):
        parse(prompt=["a"] * 65, best_of=2)
