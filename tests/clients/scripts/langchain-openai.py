"""langchain-openai as its own pages show it: ChatOpenAI and OpenAIEmbeddings, the base URL and the key changed."""

import json
import math
import os
import sys

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

WHERE = {"base_url": os.environ["JUBAL_URL"], "api_key": os.environ["JUBAL_KEY"]}
CAPITAL = [SystemMessage("You are a helpful assistant."), HumanMessage("What is the capital of France?")]
# tiktoken finds OpenAI's vocabulary here instead of fetching it (envs/langchain-openai.bare.txt).
os.environ["TIKTOKEN_CACHE_DIR"] = os.path.join(
    sys.prefix,
    "lib",
    f"python{sys.version_info[0]}.{sys.version_info[1]}",
    "site-packages/llama_index/core/_static/tiktoken_cache",
)


class Person(BaseModel, extra="forbid"):
    """Someone."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


class Place(BaseModel, extra="forbid"):
    location: str = Field(max_length=20)


@tool(args_schema=Place)
def get_weather(location: str) -> str:
    """Get current weather for a location"""
    return f"12 degrees in {location}"


def chat(**more: object) -> ChatOpenAI:
    return ChatOpenAI(model="grok-4", temperature=0, max_tokens=100, max_retries=0, **WHERE, **more)


def invoke() -> object:
    answer = chat().invoke(CAPITAL)
    return {
        "text": answer.content,
        "usage": answer.usage_metadata,
        "finish": answer.response_metadata["finish_reason"],
        "model": answer.response_metadata["model_name"],
        "id": answer.response_metadata.get("id") or answer.id,
    }


def stream() -> object:
    chunks = list(chat(stream_usage=True).stream(CAPITAL))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return {"text": whole.content, "chunks": len(chunks), "usage": whole.usage_metadata}


def batch() -> object:
    return {"texts": [one.content for one in chat().batch([CAPITAL, CAPITAL, "Say hello."])]}


def tools() -> object:
    """The model asks for a call, it is made, and its result goes back."""
    bound = chat().bind_tools([get_weather], tool_choice="get_weather")
    asked = HumanMessage("What is the weather in Oslo?")
    called = bound.invoke([asked])
    (call,) = called.tool_calls
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    answer = chat().bind_tools([get_weather], tool_choice="none").invoke([asked, called, result])
    assert isinstance(answer, AIMessage)
    return {"call": call["name"], "arguments": call["args"], "said": bool(answer.content), "more": answer.tool_calls}


def structured() -> object:
    """In each of its ways."""
    made = {}
    for method in ("function_calling", "json_schema"):
        person = chat().with_structured_output(Person, method=method).invoke("Extract: Jason is 25 years old")
        assert isinstance(person, Person), person
        made[method] = person.model_dump()
    return made


def embeddings() -> object:
    """With its defaults it sends lists of token ids, made with OpenAI's vocabulary whatever the model is."""
    asked = {"model": "grok-embedding-small", **WHERE}
    texts = ["The cat sat on the mat.", "Der Himmel ist blau: 42 \U0001f98a", "word " * 600]
    by_tokens = OpenAIEmbeddings(**asked).embed_documents(texts)
    by_text = OpenAIEmbeddings(check_embedding_ctx_length=False, **asked).embed_documents(texts)
    return {
        "dimensions": [len(one) for one in by_tokens],
        "closeness": [sum(map(float.__mul__, one, other)) for one, other in zip(by_tokens, by_text, strict=True)],
        "length": [math.hypot(*one) for one in by_tokens],
    }


print(json.dumps({part: globals()[part]() for part in sys.argv[1:]}))
