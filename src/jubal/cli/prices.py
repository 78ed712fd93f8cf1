"""`jubal prices`: what a team pays in place of the list price."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jubal import config
from jubal.cli.common import (
    CommandError,
    ConfigOption,
    JsonOption,
    TeamOption,
    now_us,
    open_store,
    operator,
    print_json,
    print_table,
    public_name,
    table,
    ticks_of,
)
from jubal.core.money import LongContext

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from jubal.accounts.prices import PriceTerms


PER_MILLION = 1_000_000
RateOption = Annotated[str | None, typer.Option(metavar="USD", help="USD per million tokens.", show_default=False)]

app = typer.Typer(no_args_is_help=True, help="Prices of single teams. Those of the list are in the configuration.")


@app.command("set")
def set_(
    team: TeamOption,
    model: Annotated[str, typer.Option("--model", help="A model's public name, * for all others.")] = "*",
    input: RateOption = None,
    cached_input: RateOption = None,
    output: RateOption = None,
    image: RateOption = None,
    reasoning: RateOption = None,
    request: Annotated[
        str | None, typer.Option(metavar="USD", help="USD per request, beside its tokens.", show_default=False)
    ] = None,
    tool: Annotated[
        list[str] | None, typer.Option(metavar="NAME=USD", help="USD per call of a tool; may be given often.")
    ] = None,
    long_context: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS=IN,CACHED,OUT",
            help="From so many prompt tokens on: USD per million of all tokens of the request.",
            show_default=False,
        ),
    ] = None,
    discount: Annotated[float, typer.Option(min=0, max=100, help="Percent off all rates.")] = 0,
    volume: Annotated[
        list[str] | None,
        typer.Option(metavar="USD=PERCENT", help="Percent off once so much was spent this month; may be given often."),
    ] = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Set a team's price of a model. What is left out is as in the list. In force everywhere within two seconds."""
    from jubal.accounts.prices import PriceTerms

    settings = config.load(config_file)
    name = public_name(settings, model)
    steps = [_pair(text, "--volume") for text in volume or ()]
    terms = PriceTerms(
        input=_rate(input),
        cached_input=_rate(cached_input),
        output=_rate(output),
        image=_rate(image),
        reasoning=_rate(reasoning),
        request=None if request is None else ticks_of(request),
        tools=tuple((name, ticks_of(usd)) for name, usd in (_pair(text, "--tool") for text in tool)) if tool else None,
        long_context=None if long_context is None else _long_context(long_context),
        discount=_basis_points(str(discount)),
        volume=tuple(sorted((ticks_of(usd), _basis_points(percent)) for usd, percent in steps)),
    )
    with open_store(settings) as store:
        team_id = store.transact(_put, team, name, terms)
    if as_json:
        print_json(view(team_id, name, terms))
    else:
        print(f"Set the price of {name} for {team}.")


def _put(conn: Connection, team: str, model: str, terms: PriceTerms) -> str:
    from jubal.accounts import teams
    from jubal.admin import credits

    team_id = teams.by_name_or_id(conn, team).id
    credits.set_price(conn, operator(conn), team_id, model, terms, now_us=now_us())
    return team_id


def _rate(usd_per_million: str | None) -> int | None:
    """As ticks per token, which must be whole."""
    if usd_per_million is None:
        return None
    ticks, rest = divmod(ticks_of(usd_per_million), PER_MILLION)
    if rest:
        raise CommandError(f"`{usd_per_million}` USD per million tokens is finer than a tick per token (0.0001).")
    return ticks


def _basis_points(percent: str) -> int:
    try:
        exact = float(percent) * 100
        whole = round(exact)
    except (ValueError, OverflowError):  # what is no number, or an infinite one
        raise CommandError(f"`{percent}` is not a number of percent.") from None
    if not abs(exact - whole) < 1e-6:
        raise CommandError(f"A discount of {percent} percent is finer than a hundredth of a percent.")
    return whole


def _long_context(text: str) -> LongContext:
    threshold, prices = _pair(text, "--long-context")
    rates = [_rate(one.strip()) for one in prices.split(",")]
    if not (threshold.isascii() and threshold.isdigit() and 0 < int(threshold) < 2**53) or len(rates) != 3:
        raise CommandError(f"--long-context: expected such as 200000=4.00,1.00,12.00; got `{text}`.")
    return LongContext(int(threshold), *(rate or 0 for rate in rates))


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise CommandError(f"{flag} takes two values with = between them; got `{text}`.")
    return name, value


@app.command("list")
def list_(
    team: Annotated[str | None, typer.Option("--team", metavar="T", help="Of this team: its name or id.")] = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """List the prices that are not the list's."""

    def rows(conn: Connection) -> list[tuple[str, str, PriceTerms]]:
        from jubal.accounts import prices, teams

        return prices.listing(conn, None if team is None else teams.by_name_or_id(conn, team).id)

    with open_store(config.load(config_file)) as store:
        found = [view(*one) for one in store.read(rows)]
    if as_json:
        print_json(found)
    else:
        print_table(
            table("team", "model", "terms"),
            [
                (
                    str(one["team_id"]),
                    str(one["model"]),
                    ", ".join(f"{name} {value}" for name, value in one.items() if name not in ("team_id", "model")),
                )
                for one in found
            ],
        )


@app.command("rm")
def rm(
    team: TeamOption,
    model: Annotated[str, typer.Option("--model", help="A model's public name, * for all others.")] = "*",
    config_file: ConfigOption = None,
) -> None:
    """Go back to the list price."""

    settings = config.load(config_file)

    def work(conn: Connection) -> str:
        from jubal.accounts import prices, teams
        from jubal.admin import credits

        team_id = teams.by_name_or_id(conn, team).id
        there = {name for _, name, _ in prices.listing(conn, team_id)}
        name = model if model in there else public_name(settings, model)  # one that nobody serves any more, or an alias
        credits.remove_price(conn, operator(conn), team_id, name, now_us=now_us())
        return name

    with open_store(settings) as store:
        print(f"{store.transact(work)} has its list price for {team} again.")


def view(team_id: str, model: str, terms: PriceTerms) -> dict[str, object]:
    """As JSON shows it, in ticks per token, request and call; discounts in hundredths of a percent."""
    import json

    from jubal.accounts import prices

    return {"team_id": team_id, "model": model, **json.loads(prices.encode(terms))}
