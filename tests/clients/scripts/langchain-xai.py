"""langchain-xai, and langchain-anthropic, as their own pages show them: the base URL and the key changed."""

import json
import os
import sys

from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_xai import ChatXAI
from pydantic import BaseModel

URL, KEY = os.environ["JUBAL_URL"], os.environ["JUBAL_KEY"]
CAPITAL = [SystemMessage("You are a helpful assistant."), HumanMessage("What is the capital of France?")]
OSLO = HumanMessage("What is the weather in Oslo?")


class Person(BaseModel):
    """Someone."""

    name: str
    age: int


@tool
def get_weather(location: str) -> str:
    """Get current weather for a location"""
    return f"12 degrees in {location}"


def chat(kind: str, **more: object) -> BaseChatModel:
    asked = {"temperature": 0, "max_tokens": 60, "max_retries": 0, **more}
    if kind == "anthropic":
        return ChatAnthropic(model="grok-4", base_url=URL.removesuffix("/v1"), api_key=KEY, **asked)
    return ChatXAI(model="grok-4", base_url=URL, api_key=KEY, **asked)


def invoke(kind: str) -> object:
    answer = chat(kind).invoke(CAPITAL)
    return {"text": answer.text, "usage": answer.usage_metadata, "provider": answer.response_metadata["model_provider"]}


def stream(kind: str) -> object:
    chunks = list(chat(kind).stream(CAPITAL))
    whole = sum(chunks[1:], chunks[0])
    assert isinstance(whole, AIMessageChunk)
    return {"text": whole.text, "chunks": len(chunks), "usage": whole.usage_metadata}


# From here on against the scripted model.


def tools(kind: str) -> object:
    bound = chat(kind).bind_tools([get_weather])
    called = bound.invoke([OSLO])
    results = [get_weather.invoke(call) for call in called.tool_calls]
    answer = bound.invoke([OSLO, called, *results])
    chunks = list(bound.stream([OSLO]))
    streamed = sum(chunks[1:], chunks[0])
    calls = [[(call["name"], call["args"]) for call in one.tool_calls] for one in (called, streamed)]
    return {"calls": calls, "text": answer.text}


def structured(kind: str) -> object:
    methods = ("function_calling", "json_schema")
    return {way: chat(kind).with_structured_output(Person, method=way).invoke("Who?").model_dump() for way in methods}


def code(kind: str) -> object:
    """A tool that the server runs, over the Responses API."""
    answer = chat(kind).bind_tools([{"type": "code_interpreter", "container": {"type": "auto"}}]).invoke("6 * 7?")
    return {"text": answer.text, "blocks": [block["type"] for block in answer.content_blocks]}


def search(kind: str) -> object:
    """The retired parameter, with mode off."""
    return chat(kind, search_parameters={"mode": "off"}).invoke(CAPITAL).text


parts = [one.partition(":") for one in sys.argv[1:]]
print(json.dumps({f"{part}:{kind}": globals()[part](kind) for part, _, kind in parts}))
