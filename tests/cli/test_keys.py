from __future__ import annotations

import re

import pytest

from tests.cli.conftest import Cli

EVERYTHING = ["api-key:model:*", "api-key:endpoint:*"]


def test_create_gives_the_secret_once(cli: Cli) -> None:
    made = cli.json("keys", "create", "--name", "ci", "--rps", "3", "--rpm", "60", "--tpm", "9000")
    assert made["key"].startswith("xai-")
    assert made["redacted"] == f"xai-...{made['key'][-4:]}"
    assert (made["name"], made["acls"]) == ("ci", EVERYTHING)
    assert (made["rps"], made["rpm"], made["tpm"]) == (3, 60, 9000)
    assert made["management"] is False
    (listed,) = cli.json("keys", "list")
    assert listed == {name: value for name, value in made.items() if name != "key"}


def test_create_for_people(cli: Cli) -> None:
    done = cli("keys", "create", "--name", "ci")
    assert re.match(r"xai-\S+\n\nThis is the secret of ci \(.{36}\)\. It is shown only now", done.stdout)
    secret = done.stdout.split()[0]
    listed = cli("keys", "list").stdout
    assert "ci" in listed
    assert secret not in listed


def test_acls_are_kept_as_given(cli: Cli) -> None:
    acls = ["api-key:model:grok-4", "api-key:endpoint:chat"]
    assert cli.json("keys", "create", "--name", "a", "--acl", acls[0], "--acl", acls[1])["acls"] == acls


def test_a_key_that_can_do_nothing_is_pointed_out(cli: Cli) -> None:
    done = cli("keys", "create", "--name", "a", "--acl", "api-key:model:grok-4")
    assert done.exit_code == 0
    assert "api-key:endpoint:*" in done.stderr


def test_a_model_that_nobody_serves_is_pointed_out(cli: Cli) -> None:
    """Most likely it is misspelt; or it comes later, so it is no error."""
    narrow = ["--acl", "api-key:endpoint:chat", "--acl"]
    for acl in ("api-key:model:grok-4", "api-key:model:grok-4-latest", "api-key:model:*"):
        assert cli("keys", "create", "--name", "a", *narrow, acl).stderr == ""
    for act in (["create", "--name", "b"], ["update", "b"]):
        done = cli("keys", *act, *narrow, "api-key:model:grok4")
        assert done.exit_code == 0
        assert done.stderr.startswith("jubal: no model has the name `grok4` now")
    assert cli("keys", "update", "b", "--rpm", "5").stderr == ""


def test_a_wrong_acl_is_refused(cli: Cli) -> None:
    done = cli("keys", "create", "--name", "a", "--acl", "chat")
    assert done.exit_code == 1
    assert done.stderr.startswith("jubal: `chat` is not an ACL. Expected api-key:model:NAME")
    assert done.stderr.count("\n") == 1
    assert cli.json("keys", "list") == []


def test_a_management_key(cli: Cli) -> None:
    made = cli.json("keys", "create", "--name", "admin", "--management")
    assert made["key"].startswith("xai-token-")
    assert made["management"] is True


def test_of_a_team(cli: Cli) -> None:
    team = cli.json("teams", "create", "--name", "red", "--prepaid")
    assert (team["name"], team["prepaid"]) == ("red", True)
    made = cli.json("keys", "create", "--name", "theirs", "--team", "red")
    assert made["team_id"] == team["id"]
    cli.json("keys", "create", "--name", "ours")
    assert [key["name"] for key in cli.json("keys", "list", "--team", "red")] == ["theirs"]
    assert [one["name"] for one in cli.json("teams", "list")] == ["default", "red"]
    assert "red" in cli("teams", "list").stdout


def test_a_team_that_is_not_there(cli: Cli) -> None:
    done = cli("keys", "create", "--name", "a", "--team", "blue")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "jubal: There is no team with the name or id `blue`.\n"


def test_a_team_name_is_taken_once(cli: Cli) -> None:
    cli.json("teams", "create", "--name", "red")
    done = cli("teams", "create", "--name", "red")
    assert done.exit_code == 1
    assert "already" in done.stderr


def test_disable_enable_rotate_delete(cli: Cli) -> None:
    made = cli.json("keys", "create", "--name", "a")
    assert cli.json("keys", "disable", made["id"])["disabled"] is True
    assert "disabled" in cli("keys", "list").stdout
    assert cli.json("keys", "enable", made["id"])["disabled"] is False
    rotated = cli.json("keys", "rotate", made["id"])
    assert rotated["id"] == made["id"]
    assert rotated["key"] != made["key"]
    assert cli.json("keys", "delete", made["id"]) == {"id": made["id"], "deleted": True}
    assert cli.json("keys", "list") == []


@pytest.mark.parametrize("name", ["by id", "by name", "by the beginning of the id"])
def test_a_key_is_found(cli: Cli, name: str) -> None:
    made = cli.json("keys", "create", "--name", "mine")
    cli.json("keys", "create", "--name", "other")
    text = {"by id": made["id"], "by name": "mine"}.get(name, made["id"][:8])
    assert cli.json("keys", "disable", text)["id"] == made["id"]


def test_a_key_is_not_guessed(cli: Cli) -> None:
    made = [cli.json("keys", "create", "--name", "twin") for _ in range(2)]
    several = cli("keys", "delete", "twin", "--yes")
    assert several.exit_code == 1
    assert all(key["id"] in several.stderr for key in made)
    short = cli("keys", "delete", made[0]["id"][:3], "--yes")
    assert short.exit_code == 1
    assert "no key" in short.stderr
    assert len(cli.json("keys", "list")) == 2


def test_nothing_there_yet(cli: Cli) -> None:
    assert "keys create" in cli("keys", "list").stdout
    assert cli("usage").stdout == "No requests yet.\n"
    assert cli.json("usage") == []
    assert cli("credits", "history", "--team", "default").stdout.startswith("No transfers yet")
    assert cli("invoices", "list", "--team", "default").stdout.startswith("No invoices yet")
    assert cli.home.stat().st_mode & 0o777 == 0o700


def test_names_are_no_markup(cli: Cli) -> None:
    cli.json("keys", "create", "--name", "[red]x[/red] [/] :smile:")
    assert "[red]x[/red] [/] :smile:" in cli("keys", "list").stdout


def test_update(cli: Cli) -> None:
    made = cli.json("keys", "create", "--name", "a", "--rpm", "5", "--expires", "30d")
    assert abs(made["expires"] - made["created"] - 30 * 86400) < 600
    acl = ["api-key:model:grok-4", "api-key:endpoint:chat"]
    changed = cli.json("keys", "update", "a", "--name", "b", "--acl", acl[0], "--acl", acl[1], "--tpm", "9")
    assert (changed["name"], changed["acls"], changed["rpm"], changed["tpm"]) == ("b", acl, 5, 9)
    assert cli.json("keys", "update", "b", "--rps", "7")["rps"] == 7
    changed = cli.json("keys", "update", "b", "--rpm", "none", "--rps", "none", "--expires", "never")
    assert changed["rps"] is None
    assert (changed["rpm"], changed["tpm"], changed["expires"]) == (None, 9, None)
    assert cli.json("keys", "update", "b", "--expires", "2199-01-01T00:00Z")["expires"] == 7226582400
    assert cli.json("keys", "show", "b")["name"] == "b"
    shown = cli("keys", "show", "b").stdout
    assert "api-key:endpoint:chat" in shown
    assert "no limit" in shown


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "Nothing to change"),
        (["--expires", "soon"], "--expires: expected a date"),
        (["--expires", "2020-01-01"], "expire in the future"),
        (["--rpm", "many"], "--rpm: expected a number"),
        (["--rpm", "0"], "rpm must be at least 1"),
        (["--rps", "-1"], "--rps: expected a number"),
        (["--acl", "chat"], "not an ACL"),
        (["--name", " "], "name of a key"),
    ],
)
def test_updates_that_are_refused(cli: Cli, flags: list[str], says: str) -> None:
    made = cli.json("keys", "create", "--name", "a")
    done = cli("keys", "update", made["id"], *flags)
    assert done.exit_code == 1
    assert says in done.stderr
    (key,) = cli.json("keys", "list")
    assert {name: value for name, value in made.items() if name != "key"} == key


def test_an_overlap(cli: Cli) -> None:
    made = cli.json("keys", "create", "--name", "a")
    cli.json("keys", "rotate", "a", "--overlap", "24h")
    (until,) = cli.json("keys", "show", "a")["old_secrets_until"]
    assert 86000 < until - made["created"] < 86800
    assert "old secret works until" in cli("keys", "show", "a").stdout
    cli.json("keys", "rotate", "a")
    assert cli.json("keys", "show", "a")["old_secrets_until"] == []
    for text, says in (("8d", "0 to 7 days"), ("a day", "--overlap: expected")):
        done = cli("keys", "rotate", "a", "--overlap", text)
        assert done.exit_code == 1
        assert says in done.stderr


def test_block(cli: Cli) -> None:
    cli.json("keys", "create", "--name", "a")
    assert cli.json("keys", "block", "a")["blocked"] is True
    assert "blocked" in cli("keys", "list").stdout
    assert cli.json("keys", "unblock", "a")["blocked"] is False
    assert cli.json("teams", "block", "default")["blocked"] is True
    assert cli.json("teams", "unblock", "default")["blocked"] is False


def test_the_audit_log(cli: Cli) -> None:
    assert cli("audit").stdout == "No management acts yet.\n"
    made = cli.json("keys", "create", "--name", "a")
    cli.json("keys", "update", "a", "--name", "b")
    cli.json("teams", "create", "--name", "red")
    acts = cli.json("audit")
    assert [act["action"] for act in acts] == ["keys.create", "keys.update", "teams.create"], "newest last"
    assert acts[1]["resource"] == {"kind": "key", "id": made["id"]}
    assert (acts[1]["before"], acts[1]["after"]) == ({"name": "a"}, {"name": "b"})
    assert [act["action"] for act in cli.json("audit", "--team", "red")] == ["teams.create"]
    assert cli.json("audit", "--since", "2199-01-01") == []
    shown = cli("audit").stdout
    assert "name: a -> b" in shown
    assert made["key"] not in shown
