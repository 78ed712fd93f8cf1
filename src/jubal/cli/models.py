"""`jubal models`: which models are served and by what, and the model files of the embedded engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from jubal import catalogue, config
from jubal.cli import fetching
from jubal.cli.common import (
    CommandError,
    ConfigOption,
    JsonOption,
    base_url,
    make_home,
    print_json,
    print_table,
    table,
    trusting_own,
)
from jubal.core.model import Model

HEALTH_TIMEOUT_S: Final = 1.0
HEALTH_BYTES_MAX: Final = 1 << 20

app = typer.Typer(no_args_is_help=True, help="Models: what is served, and the model files.")


@dataclass(frozen=True, slots=True)
class Shown:
    """One public model. ability: "language" or "embedding". kind: the engine's. weights: what answers. file: where the embedded
    engine's weights are, None where they are not, or where the engine has no file. context: the window that the engine can
    hold, None until it has told. state: what the engine does in the server that runs with this configuration, None where
    none answers, or the engine has not been asked for anything yet.
    """

    model: Model
    ability: str
    kind: str
    weights: str
    context: int | None
    file: Path | None
    state: str | None

    @property
    def size_bytes(self) -> int | None:
        """Of the weights on this disk, all their parts."""
        from jubal.engines import weights

        return None if self.file is None else weights.shape_of(self.file).file_bytes

    @property
    def loaded(self) -> bool | None:
        """Whether the weights are in memory now; None where nothing runs that could tell, or the engine has no weights here."""
        return None if self.kind != "llama" or self.state is None else self.state == "ready"


@app.command("list")
def list_(
    files: Annotated[bool, typer.Option("--files", help="The model files instead, used or not.")] = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """List the models that are served, and what answers behind each."""
    settings = config.load(config_file)
    if files:
        _list_files(settings, as_json)
        return
    shown = _shown(settings)
    if as_json:
        print_json([view(one) for one in shown])
        return
    numbers = ("advertised", "context", "MB")
    answers = {None: "", True: "yes", False: "no"}
    print_table(
        table("model", "aliases", "engine", "kind", "weights", *numbers, "there", "loaded", right=numbers),
        [
            (
                one.model.name + (" (deprecated)" if one.model.deprecated else ""),
                " ".join(one.model.aliases),
                one.model.engine,
                f"{one.kind}, {one.ability}",
                one.weights,
                _tokens(one.model.context),
                _tokens(one.context),
                "" if one.size_bytes is None else f"{one.size_bytes / 1e6:,.1f}",
                answers[_installed(one)],
                answers[one.loaded],
            )
            for one in shown
        ],
    )


@app.command("pull")
def pull(
    source: Annotated[
        str,
        typer.Argument(help="A known name (smollm2-135m), hf:owner/repo/file.gguf, an https: address, or file:/path."),
    ],
    config_file: ConfigOption = None,
) -> None:
    """Fetch a model file. An interrupted download is resumed."""
    settings = config.load(config_file)
    make_home(settings)
    path = fetching.fetch(settings.models_home, source)
    print(path)


@app.command("rm")
def rm(
    name: Annotated[str, typer.Argument(help="A name that `jubal models list --files` shows.")],
    force: Annotated[bool, typer.Option("--force", help="Even if a configured engine uses it.")] = False,
    config_file: ConfigOption = None,
) -> None:
    """Remove a model file."""
    from jubal.engines import weights

    settings = config.load(config_file)
    if not force and (user := _users(settings).get(_path_of(settings, name))):
        raise CommandError(f"the engine {user} uses {name}. Configure it otherwise first, or remove it with --force.")
    try:
        path = weights.remove(settings.models_home, name)
    except weights.WeightsError as error:
        raise CommandError(str(error)) from error
    print(f"Removed {path}.")


# -------------------------------------------------------------------------------------------------- what is served


def _shown(settings: config.Settings) -> list[Shown]:
    from jubal.engines import weights

    names = fetching.llama_models(settings)
    files = {name: weights.resolve(settings.models_home, model) for name, model in names.items()}
    states = _states(settings)
    shown = []
    for ability, models in (
        ("language", catalogue.build(settings)),
        ("embedding", catalogue.embedding_models(settings)),
    ):
        engines = catalogue.engine_settings(settings, models)
        for model in models:
            engine = engines[model.engine]
            answers, context = _real(model, ability, engine, settings)
            file = files.get(model.engine)
            if engine.kind == "llama" and not weights.known_of(names[model.engine]):
                # Of a file that it has not read the engine only guesses.
                trained = None if file is None else weights.trained_context(file)
                context = None if trained is None or context is None else min(context, trained)
            shown.append(Shown(model, ability, engine.kind, answers, context, file, states.get(model.engine)))
    return shown


def _real(model: Model, ability: str, engine: config.Engine, settings: config.Settings) -> tuple[str, int | None]:
    """What answers behind a model, and its window, by the engine that would be made for it."""
    from jubal import app as root

    make = root.make_embedder if ability == "embedding" else root.make_engine
    try:
        real = make(model.engine, engine, settings).weights(model.upstream)
    except config.ConfigError:  # its key is not in this environment, which a listing has no need for
        return model.upstream, engine.context
    return real.name, real.context


class _Engine(msgspec.Struct):
    state: str


class _Health(msgspec.Struct):
    """What is read of a running server's /health."""

    engines: dict[str, _Engine]


def _states(settings: config.Settings) -> dict[str, str]:
    """What each engine does in the server that listens where this configuration says; empty where none answers."""
    import http.client
    import urllib.error
    import urllib.request

    address = base_url(settings.server).removesuffix("/v1") + "/health"
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if tls := trusting_own(settings):
        handlers.append(urllib.request.HTTPSHandler(context=tls))
    opener = urllib.request.build_opener(*handlers)
    try:
        try:
            response = opener.open(address, timeout=HEALTH_TIMEOUT_S)
        except urllib.error.HTTPError as error:  # 503 while an engine is starting: its body tells of all of them
            response = error
        with response:
            told = msgspec.json.decode(response.read(HEALTH_BYTES_MAX), type=_Health)
    except (OSError, http.client.HTTPException, msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return {name: engine.state for name, engine in told.engines.items()}


def _installed(shown: Shown) -> bool | None:
    """None where there is nothing to install."""
    return shown.file is not None if shown.kind == "llama" else None


def view(shown: Shown) -> dict[str, object]:
    """As JSON shows it."""
    model = shown.model
    return {
        "name": model.name,
        "aliases": list(model.aliases),
        "engine": model.engine,
        "kind": shown.kind,
        "upstream": model.upstream,
        "weights": shown.weights,
        "ability": shown.ability,
        "file": None if shown.file is None else str(shown.file),
        "size_bytes": shown.size_bytes,
        "installed": _installed(shown),
        "loaded": shown.loaded,
        "state": shown.state,
        "context": shown.context,
        "advertised_context": model.context,
        "deprecated": model.deprecated,
    }


def _tokens(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


# ------------------------------------------------------------------------------------------------------- the files


def _list_files(settings: config.Settings, as_json: bool) -> None:
    from jubal.engines import weights

    users = _users(settings)
    files = weights.list_files(settings.models_home)
    if as_json:
        print_json(
            [
                {"name": one.name, "path": str(one.path), "size_bytes": one.size_bytes, "engine": users.get(one.path)}
                for one in files
            ]
        )
    elif files:
        print_table(
            table("name", "MB", "engine", "path", right=("MB",)),
            [(one.name, f"{one.size_bytes / 1e6:,.1f}", users.get(one.path, ""), str(one.path)) for one in files],
        )
    else:
        print(f"No model files in {settings.models_home}. `jubal models pull smollm2-135m` fetches one.")


def _users(settings: config.Settings) -> dict[Path | None, str]:
    """The engine that uses a file, by the file's path."""
    from jubal.engines import weights

    # Also an engine that no model names yet: its file was pulled for it.
    models = fetching.models_of(settings.engines) | fetching.llama_models(settings)
    files = [*models.items(), *fetching.projectors(settings).items()]
    return {path: name for name, model in files if (path := weights.resolve(settings.models_home, model)) is not None}


def _path_of(settings: config.Settings, name: str) -> Path | None:
    """The file that `weights.remove` would take for this name."""
    from jubal.engines import weights

    names = ((one.path, (one.name, one.path.name, one.path.stem)) for one in weights.list_files(settings.models_home))
    return next((path for path, its in names if name in its), None)
