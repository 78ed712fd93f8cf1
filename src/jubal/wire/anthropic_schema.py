"""What the routes of Anthropic's dialects take and answer, for the OpenAPI document: one operation each, at the end."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from jubal.core.errors import JubalError
from jubal.wire import anthropic_complete, anthropic_messages
from jubal.wire.openai_errors import SHAPES
from jubal.wire.openai_schema import ALWAYS, MODEL, NOT_EMPTY, POSTED, WORKED, Count, Ticks
from jubal.wire.openapi import Answer, Operation, Schema

# ---------------------------------------------------------------------------------------------- errors


class AnthropicErrorDetail(msgspec.Struct):
    """type: Anthropic's word for the kind. code: the exact problem. param: the field of the request at fault."""

    type: str
    message: str
    code: str
    param: str | UnsetType = UNSET


class AnthropicError(msgspec.Struct):
    """Every error of Anthropic's routes, and the last event of a stream that broke."""

    type: Literal["error"]
    error: AnthropicErrorDetail


def refusals(*kinds: type[JubalError]) -> dict[int, Answer]:
    """The answers to these kinds of errors."""
    return {SHAPES[kind].status: AnthropicError for kind in kinds}


# ---------------------------------------------------------------------------------------------- messages


class AnthropicToolUsage(msgspec.Struct):
    web_search_requests: Count
    web_fetch_requests: Count
    web_search_calls: Count
    x_search_calls: Count
    code_interpreter_calls: Count
    mcp_calls: Count
    file_search_calls: Count


class MessageUsage(msgspec.Struct):
    """input_tokens is without what came from the cache; output_tokens includes the thinking."""

    input_tokens: Count
    cache_creation_input_tokens: Count
    cache_read_input_tokens: Count
    output_tokens: Count
    service_tier: Literal["standard"] | UnsetType = UNSET
    server_tool_use: AnthropicToolUsage | UnsetType = UNSET
    cost_in_usd_ticks: Ticks | UnsetType = UNSET


class MessageCitation(msgspec.Struct):
    type: Literal["web_search_result_location"]
    url: str
    title: str
    encrypted_index: str
    cited_text: str


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    text: str
    citations: list[MessageCitation] | UnsetType = UNSET


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    thinking: str
    signature: str


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A call that the client must answer."""

    id: str
    name: str
    input: dict[str, Any]


class ServerToolUseBlock(msgspec.Struct, tag_field="type", tag="server_tool_use"):
    """A call that the server makes itself, as are those of MCP servers."""

    id: str
    name: str
    input: dict[str, Any]


class McpToolUseBlock(msgspec.Struct, tag_field="type", tag="mcp_tool_use"):
    id: str
    name: str
    input: dict[str, Any]
    server_name: str


class FoundPage(msgspec.Struct):
    type: Literal["web_search_result", "x_search_result", "collections_search_result"]
    url: str
    title: str
    encrypted_content: str
    page_age: None


class ExecutionResult(msgspec.Struct, tag_field="type", tag="code_execution_result"):
    stdout: str
    stderr: str
    return_code: int
    content: list[Any]


class WebSearchFailed(msgspec.Struct, tag_field="type", tag="web_search_tool_result_error"):
    error_code: str


class XSearchFailed(msgspec.Struct, tag_field="type", tag="x_search_tool_result_error"):
    error_code: str


class CollectionsSearchFailed(msgspec.Struct, tag_field="type", tag="collections_search_tool_result_error"):
    error_code: str


class ExecutionFailed(msgspec.Struct, tag_field="type", tag="code_execution_tool_result_error"):
    error_code: str


class McpText(msgspec.Struct):
    type: Literal["text"]
    text: str


class WebSearchBlock(msgspec.Struct, tag_field="type", tag="web_search_tool_result"):
    tool_use_id: str
    content: list[FoundPage] | WebSearchFailed


class XSearchBlock(msgspec.Struct, tag_field="type", tag="x_search_tool_result"):
    tool_use_id: str
    content: list[FoundPage] | XSearchFailed


class CollectionsSearchBlock(msgspec.Struct, tag_field="type", tag="collections_search_tool_result"):
    tool_use_id: str
    content: list[FoundPage] | CollectionsSearchFailed


class ExecutionBlock(msgspec.Struct, tag_field="type", tag="code_execution_tool_result"):
    tool_use_id: str
    content: ExecutionResult | ExecutionFailed


class McpBlock(msgspec.Struct, tag_field="type", tag="mcp_tool_result"):
    tool_use_id: str
    content: list[McpText]


Block: TypeAlias = (
    TextBlock
    | ThinkingBlock
    | ToolUseBlock
    | ServerToolUseBlock
    | McpToolUseBlock
    | WebSearchBlock
    | XSearchBlock
    | CollectionsSearchBlock
    | ExecutionBlock
    | McpBlock
)
StopReason: TypeAlias = Literal["end_turn", "max_tokens", "tool_use", "refusal", "pause_turn"]


class Message(msgspec.Struct):
    """stop_reason: null at the begin of a stream only."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Block]
    stop_reason: StopReason | None
    stop_sequence: None
    usage: MessageUsage


class CountedTokens(msgspec.Struct):
    input_tokens: Count


# ---------------------------------------------------------------------------------------------- events of a stream


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    message: Message


class BlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    index: Count
    content_block: Block


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    thinking: str


class SignatureDelta(msgspec.Struct, tag_field="type", tag="signature_delta"):
    signature: str


class InputDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    partial_json: str


class CitationsDelta(msgspec.Struct, tag_field="type", tag="citations_delta"):
    citation: MessageCitation


class BlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    index: Count
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta | CitationsDelta


class BlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    index: Count


class StopDelta(msgspec.Struct):
    stop_reason: StopReason
    stop_sequence: None


class MessageEnd(msgspec.Struct, tag_field="type", tag="message_delta"):
    delta: StopDelta
    usage: MessageUsage


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    """Nothing follows."""


EVENTS: Final = (MessageStart, BlockStart, BlockDelta, BlockStop, MessageEnd, MessageStop, AnthropicError)


class Completed(msgspec.Struct):
    """The answer to a legacy prompt, and each event of it. stop_reason: null in all events but the last."""

    type: Literal["completion"]
    id: Annotated[str, Meta(pattern="^compl_")]
    completion: str
    stop_reason: Literal["stop_sequence", "max_tokens", "refusal"] | None
    stop: None
    model: str


# ---------------------------------------------------------------------------------------------- the operations

SAMPLING: Final[dict[str, Schema]] = {
    "Request.model": NOT_EMPTY,
    "Request.temperature": {"minimum": 0, "maximum": 2},
    "Request.top_p": {"minimum": 0, "maximum": 1},
}
MESSAGES: Final[dict[str, Schema]] = {
    **SAMPLING,
    "Request.messages": {"minItems": 1},
    "Request.max_tokens": {"minimum": 1},
}
EXAMPLE: Final[Schema] = {
    "model": MODEL,
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "What is 2 + 2?"}],
}

OPERATIONS: Final = (
    Operation(
        "POST",
        "/v1/messages",
        "createMessage",
        "Answer a conversation, whole or streamed, in Anthropic's dialect",
        "Messages",
        {200: Message, **refusals(*ALWAYS, *POSTED, *WORKED)},
        body=anthropic_messages.AnthropicMessages.body,
        frames=EVENTS,
        done=None,
        refined=MESSAGES,
        example=EXAMPLE,
    ),
    Operation(
        "POST",
        "/v1/messages/count_tokens",
        "countMessageTokens",
        "The prompt tokens that a message would have",
        "Messages",
        {200: CountedTokens, **refusals(*ALWAYS, *POSTED, *WORKED)},
        body=anthropic_messages.AnthropicMessages.body,
        refined=MESSAGES,
        example=EXAMPLE,
    ),
    Operation(
        "POST",
        "/v1/complete",
        "complete",
        "Go on from a prompt with turns in it, in Anthropic's legacy dialect",
        "Completions",
        {200: Completed, **refusals(*ALWAYS, *POSTED, *WORKED)},
        body=anthropic_complete.AnthropicComplete.body,
        frames=(Completed, AnthropicError),
        done=None,
        refined={**SAMPLING, "Request.max_tokens_to_sample": {"minimum": 1}},
        example={"model": MODEL, "prompt": "\n\nHuman: What is 2 + 2?\n\nAssistant:", "max_tokens_to_sample": 100},
    ),
)
