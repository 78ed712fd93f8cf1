"""Code that the server runs, seen by the official openai SDK through Responses and chat: the events of a real sandbox's run."""

from __future__ import annotations

import json

import openai
import pytest

from tests.server import Server

pytestmark = pytest.mark.usefixtures("sandboxed")


@pytest.fixture
def client(scripted_server: Server) -> openai.OpenAI:
    return openai.OpenAI(api_key=scripted_server.key, base_url=scripted_server.url, max_retries=0, timeout=60)


def test_responses_stream_tells_the_call_as_it_runs(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model="grok-4",
        input="6 * 7?",
        tools=[{"type": "code_interpreter", "container": {"type": "auto"}}],
        include=["code_interpreter_call.outputs"],
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    types = [event.type for event in events]
    about_code = [kind for kind in types if "code_interpreter" in kind]
    assert about_code == [
        "response.code_interpreter_call.in_progress",
        "response.code_interpreter_call_code.delta",
        "response.code_interpreter_call_code.done",
        "response.code_interpreter_call.interpreting",
        "response.code_interpreter_call.completed",
    ]
    done = next(event for event in events if event.type == "response.code_interpreter_call_code.done")
    assert done.code == "print(6 * 7)"
    assert types.index("response.code_interpreter_call.completed") < types.index("response.output_text.delta")
    call, message = final.output
    assert call.type == "code_interpreter_call"
    assert (call.code, call.status) == ("print(6 * 7)", "completed")
    assert call.outputs is not None
    assert [output.logs for output in call.outputs if output.type == "logs"] == ["42\n"]
    assert message.type == "message"
    assert "42" in final.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_going_on_brings_the_run_along(client: openai.OpenAI) -> None:
    first = client.responses.create(model="grok-4", input="6 * 7?", tools=[{"type": "code_interpreter"}])  # type: ignore[list-item]
    second = client.responses.create(model="grok-4", input="And?", previous_response_id=first.id)
    assert "42" in second.output_text, "the model was given the result again"


@pytest.mark.parametrize("kind", ["code_execution", "code_interpreter"])
def test_chat_completions_have_it_too(client: openai.OpenAI, kind: str) -> None:
    asked = {"model": "grok-4", "messages": [{"role": "user", "content": "6 * 7?"}], "tools": [{"type": kind}]}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].finish_reason == "stop"
    assert "42" in (whole.choices[0].message.content or "")
    used = whole.usage.server_side_tool_usage_details  # type: ignore[union-attr]
    assert used["code_interpreter_calls"] == 1
    chunks = list(client.chat.completions.create(stream=True, **asked))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert not any(delta.tool_calls for delta in deltas), "nothing that the client would have to run"
    told = [call for delta in deltas for call in (delta.model_extra or {}).get("server_side_tool_calls", ())]
    assert [(call["type"], call["status"]) for call in told] == [
        ("code_interpreter_call", "in_progress"),
        ("code_interpreter_call", "completed"),
    ]
    assert json.loads(told[0]["function"]["arguments"]) == {"code": "print(6 * 7)"}
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
