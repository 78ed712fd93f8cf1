"""A whole server with several local models, one of them for embeddings, and a limit on memory that holds one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import openai
import psutil
import pytest

from tests.conftest import home_with_models
from tests.server import Server, jubal, running

CONFIG = """
[server]
models_memory_mb = {limit}
[engines.one]
kind = "llama"
model = "smollm2-135m"
context = 512
slots = 1
[engines.gguf]
kind = "llama"
model = "smollm2-135m"
context = 512
[models.small]
engine = "one"
[models.narrow]
engine = "one"
context = 100
[models."my-embed"]
kind = "embedding"
engine = "gguf"
price = {{input = 1.0}}
"""


@pytest.fixture(scope="module")
def server(models_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = home_with_models(tmp_path_factory.mktemp("local") / "home", models_home)
    with running(home, config=CONFIG.format(limit=400)) as server:
        yield server


def children(server: Server) -> list[psutil.Process]:
    found = []
    for one in psutil.Process(server.process.pid).children():
        with suppress(psutil.Error):
            if "jubal.engines.llama_cpp.child" in one.cmdline() and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def states(server: Server) -> dict[str, str]:
    status, _, body = server.request("GET", "/health", key=None)
    assert (status, body["status"]) == (200, "ok")
    return {name: engine["state"] for name, engine in body["engines"].items()}


def test_text_and_vectors_take_turns(server: Server) -> None:
    client = openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0)
    assert states(server) == {"one": "ready"}
    made = client.embeddings.create(model="my-embed", input=["A cat sits.", "A dog runs.", "A cat sits."])
    vectors = [item.embedding for item in made.data]
    assert {len(vector) for vector in vectors} == {576}
    assert vectors[0] == vectors[2] != vectors[1]
    assert all(math.isclose(math.fsum(x * x for x in vector), 1, abs_tol=1e-4) for vector in vectors)
    assert states(server) == {"one": "stopped", "gguf": "ready"}
    assert len(children(server)) == 1
    status, _, body = server.chat(
        {"model": "small"}, messages=[{"role": "user", "content": "What is the capital of France?"}]
    )
    assert status == 200
    assert "Paris" in body["choices"][0]["message"]["content"]
    assert states(server) == {"one": "ready"}
    assert len(children(server)) == 1
    row = server.usage()[-2]
    assert (row["model"], row["engine"], row["prompt_tokens"]) == ("my-embed", "gguf", made.usage.prompt_tokens)
    assert row["cost_in_usd_ticks"] == made.usage.prompt_tokens * 10_000


def test_tokens_are_an_input_like_the_text_that_they_stand_for(server: Server) -> None:
    client = openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0)
    text = client.embeddings.create(model="my-embed", input="hello world")
    ids = client.embeddings.create(model="my-embed", input=[[28120, 905], [28120, 905, 905]])
    assert ids.data[0].embedding == text.data[0].embedding
    assert (text.usage.prompt_tokens, ids.usage.prompt_tokens) == (2, 5)


def test_more_inputs_than_are_sent_at_a_time(server: Server) -> None:
    client = openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0)
    made = client.embeddings.create(model="my-embed", input=[f"number {number}" for number in range(40)])
    assert [item.index for item in made.data] == list(range(40))
    alone = client.embeddings.create(model="my-embed", input="number 37")
    assert alone.data[0].embedding == made.data[37].embedding


def test_an_input_may_be_as_long_as_the_window_and_no_longer(server: Server) -> None:
    fits = server.request("POST", "/v1/embeddings", {"model": "my-embed", "input": [[28120] * 512]})
    assert fits[0] == 200, fits
    for given, where, tokens in (
        (["a", "word " * 600], "input[1]", "60"),
        ([[28120] * 513], "input", "513"),
    ):
        status, _, body = server.request("POST", "/v1/embeddings", {"model": "my-embed", "input": given})
        error = body["error"]
        assert (status, error["param"], error["code"]) == (400, where, "context_length_exceeded")
        assert tokens in error["message"]
        assert "512" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "a", "dimensions": 64}, "dimensions"),
        ({"input": [[10**7]]}, "input"),
        ({"input": [[1], [49152]]}, "input[1]"),
    ],
)
def test_what_it_can_not_do_is_refused(server: Server, fields: dict[str, object], param: str) -> None:
    status, _, body = server.request("POST", "/v1/embeddings", {"model": "my-embed", **fields})
    assert (status, body["error"]["param"]) == (400, param)
    same = server.request("POST", "/v1/embeddings", {"model": "my-embed", "input": "a", "dimensions": 576})
    assert same[0] == 200


def test_a_killed_child_is_replaced(server: Server) -> None:
    assert server.request("POST", "/v1/embeddings", {"model": "my-embed", "input": "a"})[0] == 200
    (child,) = children(server)
    child.kill()
    assert server.request("POST", "/v1/embeddings", {"model": "my-embed", "input": "a"})[0] == 200
    (child,) = children(server)
    child.kill()
    assert server.chat({"model": "small"})[0] == 200


def test_a_limit_that_holds_no_model_is_told_at_start(models_home: Path, tmp_path: Path) -> None:
    home = home_with_models(tmp_path / "home", models_home)
    file = tmp_path / "jubal.toml"
    file.write_text(CONFIG.format(limit=150))
    done = jubal("serve", "--port", "0", "--config", str(file), home=home)
    assert done.returncode == 2
    assert "server.models_memory_mb: The model of the engine `one` takes about" in done.stderr
    assert "all models together may take 150 MiB" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_engine_for_both_is_refused_naming_both(models_home: Path, tmp_path: Path) -> None:
    file = tmp_path / "jubal.toml"
    file.write_text(CONFIG.format(limit=600).replace('engine = "gguf"', 'engine = "one"'))
    done = jubal("serve", "--port", "0", "--config", str(file), home=home_with_models(tmp_path / "home", models_home))
    assert done.returncode == 2
    assert "`one`" in done.stderr
    assert "my-embed" in done.stderr
    assert "`small`" in done.stderr


def test_the_list_of_models_tells_sizes_windows_and_what_is_loaded(server: Server, tmp_path: Path) -> None:
    assert server.chat({"model": "small"})[0] == 200
    file = tmp_path / "jubal.toml"
    file.write_text(CONFIG.format(limit=400).replace("[server]", f"[server]\nport = {server.port}"))
    done = jubal("models", "list", "--json", "--config", str(file), home=server.home)
    assert done.returncode == 0, done.stderr
    models = {model["name"]: model for model in json.loads(done.stdout)}
    keys = ("ability", "engine", "kind", "size_bytes", "advertised_context", "context", "loaded")
    told = {name: tuple(model[key] for key in keys) for name, model in models.items()}
    size = 98_362_432
    assert told["narrow"] == ("language", "one", "llama", size, 100, 512, True)
    assert told["small"] == ("language", "one", "llama", size, None, 512, True)
    ability, engine, kind, *_, loaded = told["my-embed"]
    assert (ability, engine, kind) == ("embedding", "gguf", "llama")
    assert loaded is not True
    shown = jubal("models", "list", "--config", str(file), home=server.home).stdout
    assert "llama, embedding" in shown
    assert "98.4" in shown


def test_the_advertised_window_is_kept_where_the_engine_holds_more(server: Server) -> None:
    listed = {model["id"]: model for model in server.request("GET", "/v1/models")[2]["data"]}
    assert (listed["narrow"]["context_length"], listed["small"]["context_length"]) == (100, 512)
    rows = len(server.usage())
    long = [{"role": "user", "content": "word " * 100}]
    for model, messages, window in (
        ("narrow", long, "100"),
        ("small", [{"role": "user", "content": "word " * 600}], "512"),
    ):
        status, _, body = server.chat({"model": model}, messages=messages)
        error = body["error"]
        assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
        tokens, told = [int(word.rstrip(".")) for word in error["message"].split() if word.rstrip(".").isdigit()]
        assert tokens > len(messages[0]["content"].split())
        assert str(told) == window
    assert server.chat({"model": "small"}, messages=long)[0] == 200
    assert server.chat({"model": "narrow"})[0] == 200
    status, _, body = server.request(
        "POST", "/v1/completions", {"model": "narrow", "prompt": "word " * 100, "max_tokens": 4}
    )
    assert (status, body["error"]["param"]) == (400, "prompt"), body
    assert "100" in body["error"]["message"]
    statuses = [row["status"] for row in server.usage()[rows:]]
    assert statuses.count("ok") == 2
