"""`jubal prices`: what a team pays in place of the list price."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

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
from jubal.core.money import LongContext, exact_usd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

    from jubal.accounts.prices import PriceTerms


PER_MILLION = 1_000_000
RateOption = Annotated[str | None, typer.Option(metavar="USD", help="USD per million tokens.", show_default=False)]

ModelOption: TypeAlias = Annotated[
    str, typer.Option("--model", metavar="M", help="A model's public name, * for all others.")
]

app = typer.Typer(no_args_is_help=True, help="Prices of single teams. Those of the list are in the configuration.")


@app.command("set")
def set_(
    team: TeamOption,
    model: ModelOption = "*",
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
    discount: Annotated[
        float | None,
        typer.Option(min=0, max=100, metavar="PERCENT", help="Percent off all rates. Default: 0.", show_default=False),
    ] = None,
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
    public = public_name(settings, model)
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
        discount=_basis_points(str(discount or 0)),
        volume=tuple(sorted((ticks_of(usd), _basis_points(percent)) for usd, percent in steps)),
    )
    if discount is None and terms == PriceTerms():  # 0 means something: the list price, whatever `*` says
        raise CommandError(
            "Which price? Give a rate such as --input, --discount or --volume; `jubal prices rm` goes back to the list."
        )
    with open_store(settings) as store:
        team_id = store.transact(_put, team, public, terms)
    if as_json:
        print_json(view(team_id, public, terms))
    else:
        print(f"Set the price of {public} for {team}.")


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

    def rows(conn: Connection) -> list[tuple[str, str, str, PriceTerms]]:
        from jubal.accounts import prices, teams

        team_id = None if team is None else teams.by_name_or_id(conn, team).id
        found = prices.listing(conn, team_id)
        names = {one: teams.get(conn, one).name for one in {row[0] for row in found}}
        return [(names[of], of, model, terms) for of, model, terms in found]

    with open_store(config.load(config_file)) as store:
        found = store.read(rows)
    if as_json:
        print_json([view(team_id, model, terms) for _, team_id, model, terms in found])
    elif found:
        print_table(
            table("team", "model", "terms"),
            [(name, model, ", ".join(_in_words(terms))) for name, _, model, terms in found],
        )
    else:
        print("Every team pays the list prices. `jubal prices set` gives one a price of its own.")


def _in_words(terms: PriceTerms) -> Iterator[str]:
    """In USD: rates are per million tokens."""
    for name in ("input", "cached_input", "output", "image", "reasoning"):
        if (ticks := getattr(terms, name)) is not None:
            yield f"{name.replace('_', ' ')} {exact_usd(ticks * PER_MILLION)}"
    if (long := terms.long_context) is not None:
        rates = "/".join(exact_usd(ticks * PER_MILLION) for ticks in (long.input, long.cached_input, long.output))
        yield f"{rates} from {long.threshold:,} prompt tokens on"
    if terms.request is not None:
        yield f"{exact_usd(terms.request)} a request"
    for tool, ticks in terms.tools or ():
        yield f"{tool} {exact_usd(ticks)} a call"
    if terms.discount:
        yield f"{terms.discount / 100:g} % off"
    for spent, discount in terms.volume:
        yield f"{discount / 100:g} % off from {exact_usd(spent)} a month on"


@app.command("rm")
def rm(
    team: TeamOption,
    model: ModelOption = "*",
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Go back to the list price."""

    settings = config.load(config_file)

    def work(conn: Connection) -> tuple[str, str]:
        from jubal.accounts import prices, teams
        from jubal.admin import credits

        team_id = teams.by_name_or_id(conn, team).id
        there = {name for _, name, _ in prices.listing(conn, team_id)}
        name = model if model in there else public_name(settings, model)  # one that nobody serves any more, or an alias
        credits.remove_price(conn, operator(conn), team_id, name, now_us=now_us())
        return team_id, name

    with open_store(settings) as store:
        team_id, name = store.transact(work)
    if as_json:
        print_json({"team_id": team_id, "model": name, "removed": True})
    else:
        print(f"{name} has its list price for {team} again.")


def view(team_id: str, model: str, terms: PriceTerms) -> dict[str, object]:
    """As JSON shows it, in ticks per token, request and call; discounts in hundredths of a percent."""
    import json

    from jubal.accounts import prices

    return {"team_id": team_id, "model": model, **json.loads(prices.encode(terms))}
