"""What servers of the OpenAI dialect want said in words of their own: a turn becomes one that asks the same of that server.

Which server it is, its list of models tells (`owned_by`). Add one to `ADAPT`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from jubal.core.generation import Generation

GREEDY_BELOW: Final = 1e-5
"""Under this temperature vLLM takes the likeliest token each time."""
LIKELIEST_TOP_P: Final = 1e-6
"""A share of the probability that the likeliest token has alone, in any vocabulary of fewer than a million."""
NEARLY_GREEDY: Final = 0.01
"""vLLM raises lower temperatures to this one."""


def for_vllm(turn: Generation) -> Generation:
    """vLLM refuses several choices at temperature 0 (`n must be 1 when using greedy sampling`); sampled from the likeliest token
    alone they are the same. And it holds the arguments of a call to the function's schema only where the function is `strict`;
    unlike OpenAI it asks nothing of the schema for that."""
    sampling = turn.sampling
    if turn.choices > 1 and sampling.temperature is not None and sampling.temperature < GREEDY_BELOW:
        turn = replace(turn, sampling=replace(sampling, temperature=NEARLY_GREEDY, top_p=LIKELIEST_TOP_P))
    if turn.tools.functions:
        strict = tuple(replace(function, strict=True) for function in turn.tools.functions)
        turn = replace(turn, tools=replace(turn.tools, functions=strict))
    return turn


ADAPT: Final[Mapping[str, Callable[[Generation], Generation]]] = MappingProxyType({"vllm": for_vllm})
"""By the `owned_by` of the model that is asked."""


LLAMA_CPP: Final = "llamacpp"
VERBOSE: Final[Mapping[str, object]] = MappingProxyType({"verbose": True})
"""Makes llama.cpp say at the end of an answer which stop string ended it. It says much else, so it is asked for nothing less."""
NOTHING_MORE: Final[Mapping[str, object]] = MappingProxyType({})


def extra_fields(turn: Generation, owner: str | None) -> Mapping[str, object]:
    """Fields of the body that only a server of this kind understands. owner: None where it is not known."""
    return VERBOSE if owner == LLAMA_CPP and turn.sampling.stop else NOTHING_MORE


def adapted(turn: Generation, owner: str | None) -> Generation:
    """The turn as a server of this kind wants it. owner: None where it is not known."""
    adapt = ADAPT.get(owner) if owner is not None else None
    return turn if adapt is None else adapt(turn)
