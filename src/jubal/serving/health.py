"""GET /health: what runs, and whether every model has an engine that answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from jubal.core.model import Model
from jubal.engines.base import EngineStatus
from jubal.serving.pipeline import Served, ServedEmbedder

WELL: Final = frozenset({"ready", "stopped"})


def report(
    served: Mapping[str, Served],
    embedders: Mapping[str, ServedEmbedder],
    models: Iterable[Model],
    embedding_models: Iterable[Model],
) -> tuple[int, dict[str, Any]]:
    """The status to answer with, and the body.

    ok: every engine is ready. starting: some are not yet. degraded: some failed, or rest. 200 as long as every model has an
    engine that answers, be it a fallback; 503 where one has none. What waits for a request to load its model counts as ready.
    """
    talk = {name: (one.engine.status(), one) for name, one in served.items()}
    embed = {name: (one.embedder.status(), one) for name, one in embedders.items()}
    engines: dict[str, Any] = {}
    doors: list[tuple[str, EngineStatus, Served | ServedEmbedder]] = [(name, *one) for name, one in talk.items()]
    doors += [(name, *one) for name, one in embed.items() if one[0].state != "stopped"]
    for name, status, door in doors:
        engines.setdefault(name, _view(status, door))
    answers = {name for name, (status, door) in talk.items() if status.state in WELL and _awake(door)}
    embeds = {name for name, (status, door) in embed.items() if status.state in WELL and _awake(door)}
    whole = all(answers.intersection((model.engine, *model.fallback)) for model in models) and all(
        embeds.intersection((model.engine, *model.fallback)) for model in embedding_models
    )
    return 200 if whole else 503, {"status": _word(engines), "engines": engines}


def _awake(door: Served | ServedEmbedder) -> bool:
    """Not only closed: whoever sends no requests while this says 503 would never see the one that closes it."""
    return not door.breaker.rests


def _word(engines: dict[str, Any]) -> str:
    states = {one["state"] for one in engines.values()}
    if "failed" in states or any(one.get("breaker") == "open" for one in engines.values()):
        return "degraded"
    return "ok" if states <= WELL else "starting"


def _view(status: EngineStatus, door: Served | ServedEmbedder) -> dict[str, Any]:
    """Nothing of what an engine said: everybody may read this."""
    made = door.engine if isinstance(door, Served) else door.embedder
    breaker = door.breaker
    view: dict[str, Any] = {
        "kind": made.kind,
        "state": status.state,
        "running": door.admission.running,
        "queued": door.admission.queued,
        "breaker": "half_open" if breaker.state == "open" and not breaker.rests else breaker.state,
    }
    if breaker.failures:
        view["failures_in_a_row"] = breaker.failures
    if breaker.rests:
        view["asked_again_in_s"] = round(breaker.refuses_for_s, 1)
    if status.reason:
        view["reason"] = status.reason
    return view
