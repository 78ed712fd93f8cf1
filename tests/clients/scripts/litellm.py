"""litellm as its own pages show it: the xai/ and openai/ prefixes, the base URL and the key changed."""

import asyncio
import json
import os
import sys

# Else the first import asks the network for a list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["LITELLM_TELEMETRY"] = "False"

import litellm

WHERE = {"api_base": os.environ["JUBAL_URL"], "api_key": os.environ["JUBAL_KEY"], "num_retries": 0}
CAPITAL = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
ASKED = {"messages": CAPITAL, "max_tokens": 200, "temperature": 0, **WHERE}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get current weather for a location",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def completion() -> object:
    said = {}
    for model in ("xai/grok-4", "openai/grok-4"):
        answer = litellm.completion(model=model, **ASKED)
        said[model] = {"text": answer.choices[0].message.content, "tokens": answer.usage.total_tokens}
    said["anthropic"] = (
        litellm.completion(model="anthropic/grok-4", **{**ASKED, "api_base": WHERE["api_base"].removesuffix("/v1")})
        .choices[0]
        .message.content
    )
    return said


def stream() -> object:
    chunks = list(litellm.completion(model="xai/grok-4", stream=True, stream_options={"include_usage": True}, **ASKED))
    whole = litellm.stream_chunk_builder(chunks, messages=CAPITAL)
    return {
        "text": whole.choices[0].message.content,
        "chunks": len(chunks),
        "finish": whole.choices[0].finish_reason,
        "tokens": whole.usage.total_tokens,
    }


def together() -> object:
    async def both() -> list[str]:
        answers = await asyncio.gather(*(litellm.acompletion(model="xai/grok-4", **ASKED) for _ in range(2)))
        return [answer.choices[0].message.content for answer in answers]

    return asyncio.run(both())


def embedding() -> object:
    answer = litellm.embedding(model="openai/grok-embedding-small", input=["hello world", "bye"], **WHERE)
    return {"lengths": [len(one["embedding"]) for one in answer.data], "tokens": answer.usage.prompt_tokens}


def failure(**changes: object) -> object:
    try:
        answer = litellm.completion(**{"model": "xai/grok-4", **ASKED, **changes})
        for _ in answer if changes.get("stream") else ():
            pass
    except Exception as error:  # which class it is, is what the test asks
        return {"class": type(error).__name__, "status": error.status_code, "message": str(error)}
    return None


def errors() -> object:
    limited = {"api_key": os.environ["LIMITED_KEY"], "max_tokens": 1}
    return {
        "key": failure(api_key="xai-nobody"),
        "model": failure(model="xai/grok-99"),
        "range": failure(temperature=9),
        "stream": failure(model="xai/grok-99", stream=True),
        "first": failure(**limited),
        "rate": failure(**limited),
    }


# From here on against the scripted model.


def tools() -> object:
    said = {}
    for model in ("xai/grok-4", "openai/responses/grok-4"):
        asked = [{"role": "user", "content": "What is the weather in Oslo?"}]
        first = litellm.completion(model=model, messages=asked, tools=[WEATHER], **WHERE).choices[0]
        (call,) = first.message.tool_calls
        result = {"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": "12 degrees"}
        history = [*asked, first.message.model_dump(), result]
        second = litellm.completion(model=model, messages=history, tools=[WEATHER], **WHERE).choices[0]
        said[model] = {
            "call": [call.function.name, json.loads(call.function.arguments), first.finish_reason],
            "text": second.message.content,
        }
    return said


def structured() -> object:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = litellm.completion(model="xai/grok-4", response_format=form, **ASKED)
    return json.loads(answer.choices[0].message.content)


print(json.dumps({part: globals()[part]() for part in sys.argv[1:]}))
