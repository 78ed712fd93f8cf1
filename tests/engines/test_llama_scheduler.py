"""Decisions about a child: pure, so every case is a row."""

from __future__ import annotations

import pytest

from jubal.engines.llama_cpp.scheduler import (
    LINE_BYTES_MAX,
    LINES_MAX,
    Kill,
    Life,
    Look,
    Policy,
    Record,
    Tail,
    Watch,
    after_life,
    backoff_s,
    fed,
    judge,
    last_words,
)

POLICY = Policy()


@pytest.mark.parametrize(("failures", "pause_s"), [(1, 0.5), (2, 1), (3, 2), (6, 16), (7, 30), (8, 30), (5000, 30)])
def test_the_pause_doubles_up_to_its_bound(failures: int, pause_s: float) -> None:
    assert backoff_s(failures, POLICY) == pause_s


def test_a_loading_child_is_asked_often_at_first() -> None:
    delays = []
    now_s = 0.0
    while now_s < 60:
        verdict = judge(Watch(0, None, 0), now_s, POLICY)
        assert isinstance(verdict, Look)
        delays.append(verdict.after_s)
        now_s += verdict.after_s
    assert delays[0] <= 0.05
    assert delays == sorted(delays)
    assert delays[-1] == 0.5
    assert len(delays) < 300


def test_a_child_that_never_gets_ready_is_given_up() -> None:
    assert isinstance(judge(Watch(0, None, 0), 599.9, POLICY), Look)
    assert judge(Watch(0, None, 0), 600, POLICY) == Kill("It was not ready after 600 s.")


def test_a_silent_child_is_given_up_and_a_slow_one_is_not() -> None:
    assert judge(Watch(0, 1, 100), 114.9, POLICY) == Look(2)
    assert judge(Watch(0, 1, 100), 115, POLICY) == Kill("It gave no sign of life for 15 s.")


def test_a_child_that_died_is_started_again_with_growing_pauses() -> None:
    record, pauses = Record(), []
    for number in range(4):
        record, pause = after_life(record, Life(ready_s=10, ended_s=11, why=f"death {number}"), POLICY)
        pauses.append((pause.state, pause.delay_s, pause.reason))
    assert pauses == [
        ("starting", 0.5, "death 0"),
        ("starting", 1, "death 1"),
        ("starting", 2, "death 2"),
        ("starting", 4, "death 3"),
    ]


def test_a_child_that_was_well_for_long_ends_the_row() -> None:
    record, pause = after_life(Record(failures=5), Life(ready_s=10, ended_s=10 + POLICY.settled_s, why=""), POLICY)
    assert (record.failures, pause.delay_s) == (1, 0.5)


def test_children_that_are_never_ready_make_the_engine_fail_and_it_is_tried_again_slowly() -> None:
    record, states = Record(), []
    for _ in range(5):
        record, pause = after_life(record, Life(None, 1, "no"), POLICY)
        states.append((pause.state, pause.delay_s))
    assert states == [("starting", 0.5), ("starting", 1), ("failed", 30), ("failed", 30), ("failed", 30)]
    record, _ = after_life(record, Life(ready_s=1, ended_s=2, why=""), POLICY)
    record, pause = after_life(record, Life(None, 3, "no"), POLICY)
    assert pause.state == "starting", "one that was ready in between ends the row"


def test_what_makes_a_start_hopeless_fails_at_once_and_is_looked_at_again_soon() -> None:
    record, pause = after_life(Record(2, 1), Life(None, 0, "There is no model file.", hopeless=True), POLICY)
    assert (pause.state, pause.delay_s, pause.reason) == ("failed", POLICY.recheck_s, "There is no model file.")
    assert record == Record(2, 1)


def test_output_is_kept_to_its_last_lines() -> None:
    tail = Tail()
    for number in range(1000):
        tail = fed(tail, f"line {number}\n".encode())
    tail = fed(tail, b"x" * 100_000)
    assert len(tail.lines) == LINES_MAX
    assert tail.lines[-1] == "line 999"
    assert len(tail.rest) == LINE_BYTES_MAX


def test_output_is_the_same_however_it_is_cut() -> None:
    data = "erste Zeile\n\n  zweite é\r\ndritte".encode()
    whole = fed(Tail(), data)
    tail = Tail()
    for number in range(len(data)):
        tail = fed(tail, data[number : number + 1])
    assert tail == whole
    assert whole.lines == ("erste Zeile", "zweite é")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (b"", None),
        (b"loading\nboom\n", "boom"),
        (b"loading\nno newline", "no newline"),
        (
            b"0.00.003.241 W srv          init: security: no API key is set\n"
            b"0.00.003.729 E srv    load_model: failed to load model, '/x.gguf'\n"
            b"0.00.003.957 E srv          init: exiting due to model loading error\n"
            b"E Failed to init server, please check the input params.\n",
            "srv load_model: failed to load model, '/x.gguf'",
        ),
        (b"E No module named 'xllamacpp'\n", "No module named 'xllamacpp'"),
    ],
)
def test_the_best_line_says_why(output: bytes, words: str | None) -> None:
    assert last_words(fed(Tail(), output)) == words
