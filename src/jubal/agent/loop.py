"""The loop that makes an answer out of an engine's turns, and sums what they used."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from jubal.core.errors import EngineBroken
from jubal.core.events import Event, Finished, TurnEnded
from jubal.core.generation import Generation
from jubal.core.tally import Tally
from jubal.engines.base import Engine


async def run(turn: Generation, engine: Engine) -> AsyncGenerator[Event, None]:
    """Answer `turn`: pieces as they come, then one `Finished`. `Started` is the pipeline's.

    Raises what the engine raises; `EngineBroken` where it stops without an end. Closing it stops the engine's work first.
    """
    tally = Tally()
    ended: TurnEnded | None = None
    async with aclosing(engine.stream(turn)) as events:
        async for event in events:
            if isinstance(event, TurnEnded):
                ended = event
                continue
            tally.see(event)
            yield event
    if ended is None:
        raise EngineBroken("The engine stopped without ending its answer.")
    tally.see(ended)
    yield Finished(ended.reasons, tally.usage(turn), estimated=not tally.exact)
