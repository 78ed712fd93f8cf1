"""The pages of docs/howto/sdk: the code of each is run as it stands there, only the address is that of a test's server."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.environments import Environment
from tests.server import Server

PAGES = Path(__file__).parents[2] / "docs" / "howto" / "sdk"
ADDRESS = "http://127.0.0.1:8000"
HERE = "development"
"""Stands for the environment that runs the tests: the SDK is among the development tools."""


@dataclass(frozen=True)
class Page:
    """environment: where its code runs. wrote: what it must write, a regular expression."""

    environment: str
    wrote: str
    language: str = "python"


CODE = {
    "openai-python": Page(HERE, r"\S.*\n256 dimensions\n\Z"),
    "openai-node": Page("openai-node", r"\S.*\n", "js"),
    "anthropic-python": Page(HERE, r" \(\d+ tokens\)\n.*\S"),
    "anthropic-node": Page("anthropic-node", r"\S\n(end_turn|max_tokens), \d+ tokens\n\Z", "js"),
    "ai-sdk": Page("ai-sdk", r"\S.*\n", "js"),
    "langchain": Page("langchain-xai", r"\S.*\n12 degrees in .+\n\Z"),
    "pydantic-ai": Page("pydantic-ai", r"\S.*\nname='[^\n]+' age=\d+\n\Z"),
    "litellm": Page("litellm", r"\S.*\nno such model\n"),
    "instructor": Page("instructor", r"\Aname='[^\n]+' age=\d+\n\Z"),
}


def text_of(page: str, server: Server) -> str:
    return (PAGES / f"{page}.md").read_text().replace(ADDRESS, server.url.removesuffix("/v1"))


def block(text: str, language: str) -> str:
    """The one fenced block of this language."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.S | re.M)
    return str(code)


@pytest.mark.parametrize("name", CODE)
def test_its_code_runs(
    environment_of: Callable[[str], Environment], home: Path, real_server: Server, name: str
) -> None:
    page = CODE[name]
    there = (
        Environment(HERE, Path(sys.prefix), node=False)
        if page.environment == HERE
        else environment_of(page.environment)
    )
    file = f"{name}-page.{'mjs' if there.node else 'py'}"
    code = block(text_of(name, real_server), page.language)
    wrote = there.run_text(file, code, home=home, XAI_API_KEY=real_server.key)
    assert re.search(page.wrote, wrote, re.S), wrote


def test_llms_commands_run(environment_of: Callable[[str], Environment], home: Path, real_server: Server) -> None:
    there, text = environment_of("llm"), text_of("llm", real_server)
    folder = Path(there.run_shell('dirname "$(llm logs path)"', home=home).strip())
    assert folder.is_relative_to(home)
    (folder / "extra-openai-models.yaml").write_text(block(text, "yaml"))
    wrote = there.run_shell(block(text, "sh"), home=home, XAI_API_KEY=real_server.key)
    assert '"name"' in wrote.splitlines()[-1]


def test_every_page_is_run_and_in_the_index() -> None:
    pages = {file.stem for file in PAGES.glob("*.md")} - {"README"}
    assert pages == {*CODE, "llm"}
    index = (PAGES / "README.md").read_text()
    assert {page for page in pages if f"({page}.md)" not in index} == set()


def test_pages_name_no_other_address() -> None:
    for file in PAGES.glob("*.md"):
        assert set(re.findall(r"https?://[^\s/\"`)]+", file.read_text())) <= {ADDRESS}, file.name
