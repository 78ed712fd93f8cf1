"""pydantic-ai as its own pages show it: agents with tools and output types, over three dialects; base URL and key changed."""

import asyncio
import json
import os
import sys

from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, RunContext
from pydantic_ai.capabilities import NativeTool
from pydantic_ai.messages import NativeToolCallPart, ToolCallPart
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.native_tools import CodeExecutionTool
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

URL, KEY = os.environ["JUBAL_URL"], os.environ["JUBAL_KEY"]


class Person(BaseModel):
    name: str
    age: int


def model_of(dialect: str, key: str = KEY, name: str = "grok-4") -> Model:
    if dialect == "messages":
        return AnthropicModel(name, provider=AnthropicProvider(base_url=URL.removesuffix("/v1"), api_key=key))
    openai = OpenAIProvider(base_url=URL, api_key=key)
    return OpenAIChatModel(name, provider=openai) if dialect == "chat" else OpenAIResponsesModel(name, provider=openai)


async def text(dialect: str) -> object:
    agent = Agent(model_of(dialect), instructions="You are a helpful assistant.")
    settings = {"temperature": 0, "max_tokens": 20}
    run = await agent.run("What is the capital of France?", model_settings=settings)
    pieces = []
    async with agent.run_stream("What is the capital of France?", model_settings=settings) as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
        usage = stream.usage
    return {
        "text": run.output,
        "streamed": "".join(pieces),
        "pieces": len(pieces),
        "tokens": [run.usage.total_tokens, usage.total_tokens],
    }


async def errors(dialect: str) -> object:
    said = {}
    for what, model in (
        ("key", model_of(dialect, key="xai-nobody")),
        ("model", model_of(dialect, name="grok-99")),
    ):
        try:
            await Agent(model).run("hi", model_settings={"max_tokens": 2})
        except ModelHTTPError as error:
            said[what] = error.status_code
    return said


# From here on against the scripted model.


async def agent(dialect: str) -> object:
    """A tool with dependencies, then an object as the run's output."""
    agent = Agent(model_of(dialect), deps_type=str, output_type=Person)
    asked = []

    @agent.tool
    async def get_weather(context: RunContext[str], location: str) -> str:
        """Get current weather for a location."""
        asked.append(location)
        return f"12 {context.deps} in {location}"

    run = await agent.run("What is the weather in Oslo?", deps="degrees")
    calls = [part.tool_name for one in run.all_messages() for part in one.parts if isinstance(part, ToolCallPart)]
    async with agent.run_stream("And again?", deps="degrees", message_history=run.new_messages()[:1]) as stream:
        streamed = await stream.get_output()
    return {
        "asked": asked,
        "calls": calls,
        "person": run.output.model_dump(),
        "streamed": streamed.model_dump(),
        "requests": run.usage.requests,
    }


async def native(dialect: str) -> object:
    """The schema as the format of the answer."""
    run = await Agent(model_of(dialect), output_type=NativeOutput(Person)).run("Ada is 36. Who?")
    return run.output.model_dump()


async def code(dialect: str) -> object:
    """A tool that the server runs."""
    agent = Agent(model_of(dialect), capabilities=[NativeTool(CodeExecutionTool())])
    run = await agent.run("6 * 7?")
    parts = [part for one in run.all_messages() for part in one.parts]
    return {"text": run.output, "ran": [part.tool_name for part in parts if isinstance(part, NativeToolCallPart)]}


async def main() -> dict[str, object]:
    parts = [one.partition(":") for one in sys.argv[1:]]
    return {f"{part}:{dialect}": await globals()[part](dialect) for part, _, dialect in parts}


print(json.dumps(asyncio.run(main())))
