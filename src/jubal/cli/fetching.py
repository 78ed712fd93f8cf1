"""Fetching a model file, and showing how far it is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, TypeAlias

import typer

from jubal import catalogue, config
from jubal.cli.common import CommandError, tell

Progress: TypeAlias = Callable[[int, int | None], None]
"""Bytes there so far, and bytes in all where that is known."""

LINES_MAX: Final = 10
MB: Final = 1_000_000
"""A file of unknown length gets a line for every so many bytes times ten."""


def llama_models(settings: config.Settings) -> dict[str, str]:
    """The model that each embedded engine needs, for text or for vectors, by the engine's name."""
    engines: dict[str, config.Engine] = {}
    for models in (catalogue.build(settings), catalogue.embedding_models(settings)):
        engines |= catalogue.engine_settings(settings, models)
    return models_of(engines)


def models_of(engines: dict[str, config.Engine]) -> dict[str, str]:
    """The model of each engine that has one, by the engine's name."""
    default = catalogue.LOCAL_DEFAULT.model or ""
    return {name: engine.model or default for name, engine in engines.items() if engine.kind == "llama"}


def projectors(settings: config.Settings) -> dict[str, str]:
    """The file that lets an embedded engine see images, by the name of each engine that has one."""
    engines = catalogue.engine_settings(settings, catalogue.build(settings))
    return {name: engine.mmproj for name, engine in engines.items() if engine.mmproj is not None}


def can_be_fetched(model: str) -> bool:
    """A known name or an address; anything else names a file that is there or is not."""
    from jubal.engines import weights

    return model in weights.KNOWN or ":" in model


def not_there(engine: str, key: str = "model") -> str:
    """What to do about an engine whose model, or projector, is no file and can't be fetched."""
    from jubal.engines import weights

    if key == "mmproj":
        return f"let engines.{engine}.mmproj name a GGUF file or hf:owner/repo/file.gguf"
    known = ", ".join(weights.KNOWN)
    return f"let engines.{engine}.model name a GGUF file, hf:owner/repo/file.gguf, or a known model: {known}"


def fetch(models_home: Path, source: str) -> Path:
    """Fetches a model file. Raises `CommandError`; `typer.Exit` after Ctrl-C, which leaves what is there for the next try."""
    from jubal.engines import weights

    try:
        with _shown(source) as progress:
            return weights.pull(models_home, source, progress)
    except weights.WeightsError as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt:
        tell(f"jubal: fetching {source} was interrupted; run again to resume.")
        raise typer.Exit(130) from None


def _shown(source: str) -> AbstractContextManager[Progress]:
    return _bar(source) if sys.stderr.isatty() else _lines(source)


@contextmanager
def _bar(source: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"Fetching {escape(source)}", total=None)

        def show(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield show


@contextmanager
def _lines(source: str) -> Iterator[Progress]:
    tell(f"Fetching {source}")
    shown = 0

    def show(done: int, total: int | None) -> None:
        nonlocal shown
        step = done * LINES_MAX // total if total else done // (LINES_MAX * MB)
        if step > shown:
            shown = step
            of = f" of {total // MB:,}" if total else ""
            tell(f"  {done // MB:,}{of} MB")

    yield show
