"""What the routes of the Responses API take and answer, for the OpenAPI document: one operation each, at the end.

Output items and events are told by their type only: what each type holds is in xAI's and OpenAI's references.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from jubal.core import errors as core
from jubal.wire import openai_responses, openai_sampling
from jubal.wire.openai_schema import (
    ALWAYS,
    MODEL,
    NOT_EMPTY,
    POSTED,
    WORKED,
    Count,
    Seconds,
    ServerToolUsage,
    Ticks,
    refusals,
)
from jubal.wire.openapi import Operation, Schema

Item: TypeAlias = Annotated[dict[str, Any], Meta(description="By its `type`: a message, reasoning, a call, …")]


class CachedTokens(msgspec.Struct):
    cached_tokens: Count


class ReasoningTokens(msgspec.Struct):
    reasoning_tokens: Count


class ContextTokens(msgspec.Struct):
    input_tokens: Count
    output_tokens: Count


class ResponseUsage(msgspec.Struct):
    """output_tokens includes the reasoning tokens. dropped_message_count: of a compaction."""

    input_tokens: Count
    input_tokens_details: CachedTokens
    output_tokens: Count
    output_tokens_details: ReasoningTokens
    total_tokens: Count
    num_sources_used: Count
    num_server_side_tools_used: Count
    context_details: ContextTokens
    cost_in_usd_ticks: Ticks | UnsetType = UNSET
    server_side_tool_usage_details: ServerToolUsage | UnsetType = UNSET
    dropped_message_count: Count | UnsetType = UNSET


class Incomplete(msgspec.Struct):
    reason: Literal["max_output_tokens", "max_turns", "content_filter"]


class ResponseError(msgspec.Struct):
    code: str
    message: str


class Response(msgspec.Struct):
    """The request is told again in it, with the defaults of what it left out."""

    id: str
    object: Literal["response"]
    created_at: Seconds
    completed_at: Seconds | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[Item]
    usage: ResponseUsage | None
    incomplete_details: Incomplete | None
    error: ResponseError | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float | None
    top_p: float | None
    top_logprobs: Count
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    user: str | None
    metadata: dict[str, Any]
    background: bool
    truncation: str
    presence_penalty: float
    frequency_penalty: float


class ResponseEvent(msgspec.Struct):
    """An event of a stream. The rest depends on its type; the last ones hold the `response`."""

    sequence_number: Count
    type: Annotated[str, Meta(pattern=r"^response\.")]


class DeletedResponse(msgspec.Struct):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItems(msgspec.Struct):
    object: Literal["list"]
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Compaction(msgspec.Struct):
    id: str
    object: Literal["response.compaction"]
    created_at: Seconds
    model: str
    output: list[Item]
    usage: ResponseUsage


RANGES: Final[dict[str, Schema]] = {
    f"Request.{name}": {"minimum": low, "maximum": high} for name, (low, high) in openai_sampling.RANGES.items()
}
WIDTHS: Final[dict[str, Schema]] = {
    "Request.top_k": {"minimum": 1, "maximum": openai_sampling.TOKENS_MAX},
    "Request.min_p": {"minimum": 0, "maximum": 1},
}
KEPT: Final = {"response_id": "$response.body#/id"}

OPERATIONS: Final = (
    Operation(
        "POST",
        "/v1/responses",
        "createResponse",
        "Answer a conversation, whole or streamed; the answer is kept, to go on from",
        "Responses",
        {200: Response, **refusals(*ALWAYS, *POSTED, *WORKED)},
        body=openai_responses.OpenAIResponses.body,
        frames=ResponseEvent,
        done=None,
        refined={"Request.model": NOT_EMPTY, "Request.max_output_tokens": {"minimum": 1}, **RANGES, **WIDTHS},
        example={"model": MODEL, "input": "What is 2 + 2?", "max_output_tokens": 100},
        links={"getResponse": KEPT, "listInputItems": KEPT, "deleteResponse": KEPT},
    ),
    Operation(
        "GET",
        "/v1/responses/{response_id}",
        "getResponse",
        "A kept answer",
        "Responses",
        {200: Response, **refusals(*ALWAYS, core.NotFound)},
    ),
    Operation(
        "GET",
        "/v1/responses/{response_id}/input_items",
        "listInputItems",
        "What a kept answer was asked with",
        "Responses",
        {200: InputItems, **refusals(*ALWAYS, core.BadRequest, core.NotFound)},
    ),
    Operation(
        "DELETE",
        "/v1/responses/{response_id}",
        "deleteResponse",
        "Forget a kept answer",
        "Responses",
        {200: DeletedResponse, **refusals(*ALWAYS, core.NotFound)},
    ),
    Operation(
        "POST",
        "/v1/responses/compact",
        "compactConversation",
        "A summary to stand in the place of a conversation",
        "Responses",
        {200: Compaction, **refusals(*ALWAYS, *POSTED, *WORKED)},
        body=openai_responses.ResponsesCompact.body,
        refined={"CompactRequest.model": NOT_EMPTY},
        example={"model": MODEL, "input": "Remember that the blue box holds the key."},
    ),
)
