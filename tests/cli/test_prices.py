"""`jubal prices`."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Cli


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--volume", "100=nan"], "not a number of percent"),
        (["--volume", "100=inf"], "not a number of percent"),
        (["--discount", "nan"], "not a number of percent"),
        (["--volume", "nan=5"], "not an amount of USD"),
        (["--input", "inf"], "not an amount of USD"),
        (["--input", "1000001"], "must be 0 to 1.00 USD of a token"),
        (["--tool", "web_serach=1"], "There is no tool `web_serach`"),
        (["--model", "grok-5"], "There is no model `grok-5`"),
        (["--long-context", "200000=1,2"], "--long-context: expected"),
        (["--long-context", "-5=1,2,3"], "--long-context: expected"),
    ],
)
def test_what_is_no_price(cli: Cli, flags: list[str], says: str) -> None:
    done = cli("prices", "set", "--team", "default", *flags)
    assert done.exit_code == 1
    assert says in done.stderr
    assert cli.json("prices", "list") == []


def test_an_alias_means_its_model(cli: Cli) -> None:
    """Requests are charged by the public name: a price under an alias would never be anybody's."""
    made = cli.json("prices", "set", "--team", "default", "--model", "grok-4-0709", "--input", "1")
    team_id = cli.json("teams", "show", "default")["id"]
    assert made == {"team_id": team_id, "model": "grok-4", "input": 10_000}
    assert cli.json("prices", "list") == [made]
    assert cli("prices", "rm", "--team", "default", "--model", "grok-4-latest").exit_code == 0
    assert cli.json("prices", "list") == []


def test_long_prompts_have_a_price_of_the_teams_own(cli: Cli) -> None:
    made = cli.json("prices", "set", "--team", "default", "--model", "grok-4", "--long-context", "200000=4.00, 1,12.5")
    assert made["long_context"] == [200_000, 40_000, 10_000, 125_000]


def test_a_price_of_a_model_that_is_gone_can_be_removed(cli: Cli) -> None:
    config = cli.home.parent / "jubal.toml"
    config.write_text('[models."own"]\nengine = "local"\n')
    cli("prices", "set", "--team", "default", "--model", "own", "--input", "1", JUBAL_CONFIG=str(config))
    assert [one["model"] for one in cli.json("prices", "list")] == ["own"]
    assert cli("prices", "rm", "--team", "default", "--model", "own").exit_code == 0
    assert cli.json("prices", "list") == []


def test_a_price_that_is_none_is_not_set(cli: Cli) -> None:
    """It would silently take the place of what the team had. A discount of nothing is one: the list price, whatever * says."""
    cli("prices", "set", "--team", "default", "--discount", "20")
    refused = cli("prices", "set", "--team", "default")
    assert refused.exit_code == 1
    assert "Which price?" in refused.stderr
    assert [one["discount"] for one in cli.json("prices", "list")] == [2000]
    assert cli.json("prices", "set", "--team", "default", "--model", "grok-4", "--discount", "0")["model"] == "grok-4"


def test_prices_are_listed_in_words_and_removed_in_json(cli: Cli) -> None:
    assert "list prices" in cli("prices", "list").stdout
    rates = ["--input", "2.5", "--request", "0.01", "--tool", "web_search=0.004", "--long-context", "200000=4,1,12"]
    off = ["--discount", "10", "--volume", "100=12.5"]
    cli("prices", "set", "--team", "default", "--model", "grok-4", *rates, *off)
    [_, row] = cli("prices", "list").stdout.splitlines()
    assert row.split(None, 2)[:2] == ["default", "grok-4"]
    assert row.split(None, 2)[2].strip() == (
        "input 2.50, 4.00/1.00/12.00 from 200,000 prompt tokens on, 0.01 a request, web_search 0.004 a call, "
        "10 % off, 12.5 % off from 100.00 a month on"
    )
    team_id = cli.json("teams", "show", "default")["id"]
    removed = cli.json("prices", "rm", "--team", "default", "--model", "grok-4")
    assert removed == {"team_id": team_id, "model": "grok-4", "removed": True}
