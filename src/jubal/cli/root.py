"""The root of the command tree, and how every command ends: exit codes and one-line errors.

0 done; 1 it can't be done, and the message says how to mend it; 2 wrong flags or a wrong configuration; 130 Ctrl-C;
141 the reader of our output went away.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from jubal import __version__
from jubal.cli import (
    audit,
    chat,
    credits,
    doctor,
    index,
    invoices,
    keys,
    limits,
    models,
    posts,
    prices,
    serve,
    teams,
    tools,
    usage,
    workers,
)
from jubal.cli.common import CommandError, complain, drop_stdout
from jubal.config import ConfigError
from jubal.core.errors import JubalError

INTERRUPTED: Final = 130
READER_GONE: Final = 141

STORE_MENDS: Final = {
    "store_full": "Free some space on it.",
    "store_read_only": "Correct its rights, or set $JUBAL_HOME to a folder that you can write.",
    "store_damaged": "Restore a backup of it.",
    "store_locked": "Try again, or end the program that holds it.",
    "store_io": "Check the disk.",
    "store_lost": "Check that its folder is there and yours.",
    "store_not_opened": "`jubal doctor` looks for the reason.",
    "store_unreachable": "Check store.url, and that PostgreSQL runs.",
}
"""What whoever is at this machine can do; the server's clients, who see the messages too, can't."""


class Root(TyperGroup):
    """Turns what a command raises into a message and an exit code. Anything unexpected is left to `jubal.cli.main`."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a broken pipe shows here, not in the interpreter's last breath
        except ConfigError as error:
            raise complain(str(error), code=2) from None
        except JubalError as error:
            mend = STORE_MENDS.get(error.code or "")
            raise complain(f"{error.message.rstrip('.')}. {mend}" if mend else error.message) from None
        except CommandError as error:
            raise complain(str(error)) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            drop_stdout()
            raise typer.Exit(READER_GONE) from None
        except OSError as error:
            raise complain(_of_os(error)) from None
        return result


def _of_os(error: OSError) -> str:
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename else what


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"jubal {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Root,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """A self-hosted Grok API: the xAI v1 service on your own machine.

    State lives in $JUBAL_HOME; $JUBAL_CONFIG names a configuration file, as --config does.
    """


app.command("serve")(serve.serve)
app.command("worker", hidden=True)(workers.worker)
app.command("chat")(chat.chat)
app.add_typer(keys.app, name="keys")
app.add_typer(teams.app, name="teams")
app.add_typer(credits.app, name="credits")
app.add_typer(prices.app, name="prices")
app.add_typer(invoices.app, name="invoices")
app.add_typer(limits.app, name="limits")
app.add_typer(usage.app, name="usage")
app.command("audit")(audit.audit)
app.add_typer(models.app, name="models")
app.add_typer(posts.app, name="posts")
app.add_typer(tools.app, name="tools")
app.add_typer(index.app, name="index")
app.command("doctor")(doctor.doctor)
