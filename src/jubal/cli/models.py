"""`jubal models`: which models are served and by what, and the model files of the embedded engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from jubal import catalogue, config
from jubal.cli import fetching
from jubal.cli.common import CommandError, ConfigOption, JsonOption, make_home, print_json, print_table, table
from jubal.core.model import Model

app = typer.Typer(no_args_is_help=True, help="Models: what is served, and the model files.")


@dataclass(frozen=True, slots=True)
class Shown:
    """One public model. weights: what answers. file: where the embedded engine's weights are, None where they are not, or
    where the engine has no file. context: the window that the engine can hold, None until it has told."""

    model: Model
    kind: str
    weights: str
    context: int | None
    file: Path | None


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
    contexts = ("context", "advertised")
    print_table(
        table("model", "aliases", "engine", "weights", "there", *contexts, right=contexts),
        [
            (
                one.model.name + (" (deprecated)" if one.model.deprecated else ""),
                " ".join(one.model.aliases),
                one.model.engine,
                one.weights,
                {None: "", True: "yes", False: "no"}[_installed(one)],
                _tokens(one.context),
                _tokens(one.model.context),
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
    from jubal import app as root
    from jubal.engines import weights

    models = catalogue.build(settings)
    engines = root.engine_settings(settings, models)
    names = fetching.llama_models(settings)
    files = {name: weights.resolve(settings.models_home, model) for name, model in names.items()}
    shown = []
    for model in models:
        engine = engines[model.engine]
        try:
            real = root.make_engine(model.engine, engine, settings).weights(model.upstream)
        except config.ConfigError:  # its key is not in this environment, which a listing has no need for
            answers, context = model.upstream, engine.context
        else:
            answers, context = real.name, real.context
        file = files.get(model.engine)
        if engine.kind == "llama" and not weights.known_of(names[model.engine]):
            # Of a file that it has not read the engine only guesses.
            trained = None if file is None else weights.trained_context(file)
            context = None if trained is None or context is None else min(context, trained)
        shown.append(Shown(model, engine.kind, answers, context, file))
    return shown


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
        "file": None if shown.file is None else str(shown.file),
        "installed": _installed(shown),
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

    files = [*fetching.llama_models(settings).items(), *fetching.projectors(settings).items()]
    return {path: name for name, model in files if (path := weights.resolve(settings.models_home, model)) is not None}


def _path_of(settings: config.Settings, name: str) -> Path | None:
    """The file that `weights.remove` would take for this name."""
    from jubal.engines import weights

    names = ((one.path, (one.name, one.path.name, one.path.stem)) for one in weights.list_files(settings.models_home))
    return next((path for path, its in names if name in its), None)
