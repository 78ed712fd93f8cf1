"""What a vLLM wants said in its own words, once its list of models has told that it is one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from jubal.core.events import TurnEnded
from jubal.core.generation import FunctionTool, Sampling, Tools
from jubal.engines.openai_compat import OpenAICompatEngine
from jubal.engines.quirks import adapted
from jubal.engines.upstream import UpstreamProbe
from jubal.testing import one_turn
from tests.fake_upstream import ending, lists, piece, says, upstream

ENTRY = {"id": "up", "object": "model", "owned_by": "vllm", "max_model_len": 2048, "permission": [{}]}
"""As vLLM 0.32 lists a model."""


@pytest.mark.parametrize("owner", ["vllm", "somebody", 7, None])
async def test_the_list_of_models_tells_whose_words(owner: object) -> None:
    answer = says(piece("a"), piece("a", 1), ending(choices=2))
    async with upstream(answer, models=lists({**ENTRY, "owned_by": owner})) as there:
        probe = UpstreamProbe(there.url)
        engine = OpenAICompatEngine("box", there.url, facts=probe.facts)
        await engine.start()
        turn = replace(one_turn(model="up", choices=2), tools=Tools((FunctionTool("f"),)))
        try:
            _ = [event async for event in engine.stream(turn)]
            assert (await probe.probe()).state == "ready"
            _ = [event async for event in engine.stream(turn)]
        finally:
            await engine.close()
    before, after = there.bodies
    assert before["temperature"] == 0
    assert "strict" not in before["tools"][0]["function"]
    if owner != "vllm":
        assert after == before
    else:
        assert (after["temperature"], after["top_p"]) == (0.01, 1e-6)
        assert after["tools"][0]["function"]["strict"] is True


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_p=0.9)])
def test_what_vllm_takes_as_it_stands_is_left_alone(sampling: Sampling) -> None:
    several = replace(one_turn(choices=2), sampling=sampling)
    assert adapted(several, "vllm") == several
    assert adapted(one_turn(), "vllm") == one_turn()


@pytest.mark.parametrize(("owner", "asked"), [("llamacpp", True), ("vllm", False)])
async def test_llama_cpp_is_asked_to_name_its_stopping_word(owner: str, asked: bool) -> None:
    last = {
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        "__verbose": {"index": 0, "stopping_word": "END"},
    }
    answer = says(piece("a"), b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(last).encode())
    async with upstream(answer, models=lists({**ENTRY, "owned_by": owner})) as there:
        probe = UpstreamProbe(there.url)
        engine = OpenAICompatEngine("box", there.url, facts=probe.facts)
        await engine.start()
        plain = one_turn(model="up")
        stopping = replace(plain, sampling=Sampling(stop=("END",)))
        try:
            await probe.probe()
            ends = [[event async for event in engine.stream(turn)][-1] for turn in (plain, stopping)]
        finally:
            await engine.close()
    assert ["verbose" in body for body in there.bodies] == [False, asked]
    assert [end.stops for end in ends if isinstance(end, TurnEnded)] == [(), ("END",)]
