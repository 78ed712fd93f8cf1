"""What the routes of the OpenAI family take and answer, for the OpenAPI document: one operation each, at the end.

Bodies are the structs that the dialects decode with. Answers are rendered by hand, some of them piece by piece, so they are
told again here; tests hold real answers against these structs, in both directions.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from jubal.core import errors as core
from jubal.core.errors import JubalError
from jubal.wire import openai_chat, openai_completions, openai_embeddings, openai_sampling, openai_tokenize
from jubal.wire.openai_errors import SHAPES
from jubal.wire.openapi import Answer, Operation, Schema

Count: TypeAlias = Annotated[int, Meta(ge=0)]
Ticks: TypeAlias = Annotated[int, Meta(ge=0, description="In 1e-10 US dollars.")]
TicksPerToken: TypeAlias = Annotated[int, Meta(ge=0, description="In 1e-10 US dollars for each token.")]
Seconds: TypeAlias = Annotated[int, Meta(ge=0, description="Unix seconds.")]

# ---------------------------------------------------------------------------------------------- errors


class ErrorDetail(msgspec.Struct):
    """type: whose fault it is. code: the exact problem. param: the field of the request at fault."""

    message: str
    type: str
    code: str
    param: str | UnsetType = UNSET


class ErrorBody(msgspec.Struct):
    """Every error of the REST API, and the last event of a stream that broke."""

    error: ErrorDetail


ALWAYS: Final = (core.NotIdentified, core.NotAllowed, core.TooFast, core.InternalError, core.StoreUnavailable)
"""What can happen to whoever comes with a key."""
POSTED: Final = (core.BadRequest, core.Undecodable, core.BodyTooLarge, core.UnsupportedMedia, core.Stopping)
WORKED: Final = (
    core.UnknownModel,
    core.OutOfCredit,
    core.TooFast,
    core.AtCapacity,
    core.EngineBroken,
    core.EngineUnavailable,
    core.EngineTimeout,
)
"""What can happen where an engine is asked."""


def refusals(*kinds: type[JubalError]) -> dict[int, Answer]:
    """The answers to these kinds of errors."""
    return {SHAPES[kind].status: ErrorBody for kind in kinds}


# ---------------------------------------------------------------------------------------------- usage


class PromptTokens(msgspec.Struct):
    text_tokens: Count
    audio_tokens: Count
    image_tokens: Count
    cached_tokens: Count


class CompletionTokens(msgspec.Struct):
    reasoning_tokens: Count
    audio_tokens: Count
    accepted_prediction_tokens: Count
    rejected_prediction_tokens: Count


class ServerToolUsage(msgspec.Struct):
    web_search_calls: Count
    x_search_calls: Count
    code_interpreter_calls: Count
    mcp_calls: Count
    file_search_calls: Count


class CompletionUsage(msgspec.Struct):
    """total_tokens includes the reasoning tokens, completion_tokens does not."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptTokens
    completion_tokens_details: CompletionTokens
    num_sources_used: Count
    cost_in_usd_ticks: Ticks | UnsetType = UNSET
    server_side_tool_usage_details: ServerToolUsage | UnsetType = UNSET


# ---------------------------------------------------------------------------------------------- chat completions

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter"]
Byte: TypeAlias = Annotated[int, Meta(ge=0, le=255)]
ChatId: TypeAlias = Annotated[str, Meta(pattern="^chatcmpl-")]


class CalledFunction(msgspec.Struct):
    name: str
    arguments: Annotated[str, Meta(description="JSON.")]


class FunctionCall(msgspec.Struct):
    id: str
    type: Literal["function"]
    function: CalledFunction


class LikelyToken(msgspec.Struct):
    """bytes: null where the engine does not tell them."""

    token: str
    logprob: float
    bytes: list[Byte] | None


class ChosenToken(LikelyToken):
    """The token that was chosen, and the likeliest there."""

    top_logprobs: list[LikelyToken]


class ChatLogprobs(msgspec.Struct):
    content: list[ChosenToken]


class ServerSideCall(msgspec.Struct):
    """A call of a server tool, which nobody but the server answers. output: where `include` asked for it.

    In a stream it is told twice: when it begins, with the function, and when it ends, with how.
    """

    id: str
    type: Literal["web_search_call", "x_search_call", "code_interpreter_call", "mcp_call", "file_search_call"]
    status: Literal["in_progress", "completed", "failed", "incomplete"]
    function: CalledFunction | UnsetType = UNSET
    duration_ms: Count | UnsetType = UNSET
    output: str | UnsetType = UNSET


class UrlCitation(msgspec.Struct):
    """start_index, end_index: in characters of the content."""

    url: str
    title: str
    start_index: Count
    end_index: Count


class Annotation(msgspec.Struct):
    type: Literal["url_citation"]
    url_citation: UrlCitation


Categories: TypeAlias = Annotated[dict[str, int], Meta(description="Calls that are charged, by category.")]


class AnswerMessage(msgspec.Struct):
    role: Literal["assistant"]
    content: str
    refusal: None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[FunctionCall] | UnsetType = UNSET
    server_side_tool_calls: list[ServerSideCall] | UnsetType = UNSET
    annotations: list[Annotation] | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    index: Count
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None


ServiceTier: TypeAlias = Annotated[
    Literal["default", "priority"], Meta(description="The one that was given, and is charged.")
]


class ChatCompletion(msgspec.Struct):
    id: ChatId
    object: Literal["chat.completion"]
    created: Seconds
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    system_fingerprint: str
    service_tier: ServiceTier
    citations: list[str] | UnsetType = UNSET
    server_side_tool_usage: Categories | UnsetType = UNSET


class DeferredCompletion(msgspec.Struct):
    """The answer to a request with `deferred: true`."""

    request_id: str


class FunctionCallDelta(FunctionCall):
    """Whole: a call comes in one piece."""

    index: Count


class MessageDelta(msgspec.Struct):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[FunctionCallDelta] | UnsetType = UNSET
    server_side_tool_calls: list[ServerSideCall] | UnsetType = UNSET
    annotations: list[Annotation] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    index: Count
    delta: MessageDelta
    finish_reason: FinishReason | None
    logprobs: ChatLogprobs | UnsetType = UNSET


class ChatCompletionChunk(msgspec.Struct):
    """An event of a stream, which ends with `[DONE]`. The one with the usage, where it is asked for, has no choices."""

    id: ChatId
    object: Literal["chat.completion.chunk"]
    created: Seconds
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    service_tier: ServiceTier | UnsetType = UNSET
    usage: CompletionUsage | UnsetType = UNSET
    citations: list[str] | UnsetType = UNSET
    server_side_tool_usage: Categories | UnsetType = UNSET


# ---------------------------------------------------------------------------------------------- legacy completions

TextId: TypeAlias = Annotated[str, Meta(pattern="^cmpl-")]


class TextLogprobs(msgspec.Struct):
    """Four lists with an entry for each token. text_offset: in characters from the begin of the text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[Count]


class TextChoice(msgspec.Struct):
    index: Count
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length", "content_filter"]


class TextCompletion(msgspec.Struct):
    id: TextId
    object: Literal["text_completion"]
    created: Seconds
    model: str
    choices: list[TextChoice]
    usage: CompletionUsage
    system_fingerprint: str


class TextChunkChoice(msgspec.Struct):
    index: Count
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length", "content_filter"] | None


class TextCompletionChunk(msgspec.Struct):
    """An event of a stream, which ends with `[DONE]`. The one with the usage, where it is asked for, has no choices."""

    id: TextId
    object: Literal["text_completion"]
    created: Seconds
    model: str
    choices: list[TextChunkChoice]
    system_fingerprint: str
    usage: CompletionUsage | UnsetType = UNSET


# ---------------------------------------------------------------------------------------------- embeddings, tokens


class Embedding(msgspec.Struct):
    """embedding: numbers, or the base64 of little-endian 32-bit floats, as `encoding_format` asked."""

    object: Literal["embedding"]
    index: Count
    embedding: str | list[float]


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: Count
    total_tokens: Count
    cost_in_usd_ticks: Ticks | UnsetType = UNSET


class EmbeddingList(msgspec.Struct):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class TextToken(msgspec.Struct):
    """token_bytes: what the token stands for. string_token: the same as text, where that is possible."""

    token_id: Count
    string_token: str
    token_bytes: list[Byte]


class TokenList(msgspec.Struct):
    token_ids: list[TextToken]


# ---------------------------------------------------------------------------------------------- models


class ModelWeights(msgspec.Struct):
    name: str
    fingerprint: str


class ModelCapabilities(msgspec.Struct):
    """reasoning_effort: what a request may ask for; default_reasoning_effort: what it gets without asking."""

    reasoning: bool
    reasoning_effort: list[str] | UnsetType = UNSET
    default_reasoning_effort: str | UnsetType = UNSET


class ModelCard(msgspec.Struct):
    """context_length: what the engine behind the name really holds. weights: what really answers.

    long_context_threshold: prompt tokens from which the long prices count for all tokens; 0: there are none. A model of embeddings
    has only the prices of prompts.
    """

    id: str
    object: Literal["model"]
    created: Seconds
    owned_by: str
    aliases: list[str]
    input_modalities: list[str]
    output_modalities: list[str]
    prompt_text_token_price: TicksPerToken
    prompt_image_token_price: TicksPerToken
    capabilities: ModelCapabilities
    engine: str
    weights: ModelWeights
    deprecated: bool
    cached_prompt_text_token_price: TicksPerToken | UnsetType = UNSET
    completion_text_token_price: TicksPerToken | UnsetType = UNSET
    prompt_text_token_price_long_context: TicksPerToken | UnsetType = UNSET
    cached_prompt_text_token_price_long_context: TicksPerToken | UnsetType = UNSET
    completion_text_token_price_long_context: TicksPerToken | UnsetType = UNSET
    long_context_threshold: Count | UnsetType = UNSET
    context_length: Count | UnsetType = UNSET
    description: str | UnsetType = UNSET


class ModelList(msgspec.Struct):
    object: Literal["list"]
    data: list[ModelCard]


class LanguageCapabilities(msgspec.Struct):
    reasoning_effort: list[str]
    default_reasoning_effort: str


class EmbeddingModel(msgspec.Struct):
    id: str
    fingerprint: str
    created: Seconds
    object: Literal["model"]
    owned_by: str
    version: str
    input_modalities: list[str]
    output_modalities: list[str]
    prompt_text_token_price: TicksPerToken
    prompt_image_token_price: TicksPerToken
    aliases: list[str]


class LanguageModel(EmbeddingModel):
    """search_price: for each source."""

    cached_prompt_text_token_price: TicksPerToken
    completion_text_token_price: TicksPerToken
    prompt_text_token_price_long_context: TicksPerToken
    cached_prompt_text_token_price_long_context: TicksPerToken
    completion_text_token_price_long_context: TicksPerToken
    long_context_threshold: Count
    search_price: Ticks
    context_length: Count | UnsetType = UNSET
    capabilities: LanguageCapabilities | UnsetType = UNSET


class LanguageModelList(msgspec.Struct):
    models: list[LanguageModel]


class EmbeddingModelList(msgspec.Struct):
    models: list[EmbeddingModel]


# ---------------------------------------------------------------------------------------------- the operations

MODEL: Final = "grok-4"
NOT_EMPTY: Final[Schema] = {"minLength": 1}
SAMPLING: Final[dict[str, Schema]] = {
    **{f"Request.{name}": {"minimum": low, "maximum": high} for name, (low, high) in openai_sampling.RANGES.items()},
    "Request.n": {"minimum": 1, "maximum": openai_sampling.CHOICES_MAX},
    "Request.model": NOT_EMPTY,
    "Request.max_tokens": {"minimum": 1},
}
CHAT: Final[dict[str, Schema]] = {
    **SAMPLING,
    "Request.messages": {"minItems": 1},
    "Request.max_turns": {"minimum": 1, "maximum": openai_chat.TURNS_MAX},
    "Request.max_completion_tokens": {"minimum": 1},
    "Request.top_logprobs": {"minimum": 0, "maximum": openai_chat.LOGPROBS_MAX},
    "Request.reasoning_effort": {"enum": [*openai_chat.EFFORTS, None]},
    "Request.tools": {"maxItems": openai_chat.TOOLS_MAX},
    "Message.role": {"enum": list(openai_chat.ROLES)},
    "ToolFunction.name": {"pattern": f"^{openai_chat.TOOL_NAME.pattern}$"},
    "ResponseFormat.type": {"enum": ["text", "json_object", "json_schema"]},
}
EMBEDDINGS: Final[dict[str, Schema]] = {
    "Request.model": NOT_EMPTY,
    "Request.dimensions": {"minimum": 1, "maximum": openai_embeddings.INTEGER_MAX},
    "Request.encoding_format": {"enum": ["float", "base64", None]},
}


def _models(path: str, what: str, name: str, listing: type, single: type, items: str) -> tuple[Operation, Operation]:
    return (
        Operation(
            "GET",
            path,
            f"list{name}s",
            f"The {what}s that the key may use",
            "Models",
            {200: listing, **refusals(*ALWAYS)},
            links={f"get{name}": {"model": f"$response.body#/{items}/0/id"}},
        ),
        Operation(
            "GET",
            path + "/{model}",
            f"get{name}",
            f"One {what}, by its name or an alias",
            "Models",
            {200: single, **refusals(*ALWAYS, core.UnknownModel)},
        ),
    )


OPERATIONS: Final = (
    Operation(
        "POST",
        "/v1/chat/completions",
        "createChatCompletion",
        "Answer a conversation: whole, streamed, or deferred",
        "Chat",
        {200: (ChatCompletion, DeferredCompletion), **refusals(*ALWAYS, *POSTED, *WORKED)},
        body=openai_chat.OpenAIChat.body,
        frames=(ChatCompletionChunk, ErrorBody),
        refined=CHAT,
        example={"model": MODEL, "messages": [{"role": "user", "content": "What is 2 + 2?"}], "max_tokens": 100},
        links={"getDeferredCompletion": {"request_id": "$response.body#/request_id"}},
    ),
    Operation(
        "GET",
        "/v1/chat/deferred-completion/{request_id}",
        "getDeferredCompletion",
        "The answer to a deferred request, once; 202 and no body until it is there",
        "Chat",
        # It is answered with what the request ended with, its error included.
        {200: ChatCompletion, 202: None, **refusals(*ALWAYS, core.BadRequest, core.NotFound, *WORKED)},
        parameters={"request_id": {"type": "string", "format": "uuid"}},
    ),
    Operation(
        "POST",
        "/v1/completions",
        "createCompletion",
        "Go on from a text, without a chat template (legacy)",
        "Completions",
        {200: TextCompletion, **refusals(*ALWAYS, *POSTED, *WORKED)},
        body=openai_completions.OpenAICompletions.body,
        frames=(TextCompletionChunk, ErrorBody),
        refined=SAMPLING,
        example={"model": MODEL, "prompt": "Once upon a time", "max_tokens": 16},
    ),
    Operation(
        "POST",
        "/v1/embeddings",
        "createEmbeddings",
        "Vectors of texts",
        "Embeddings",
        {200: EmbeddingList, **refusals(*ALWAYS, *POSTED, *WORKED)},
        body=openai_embeddings.OpenAIEmbeddings.body,
        refined=EMBEDDINGS,
        example={"model": "grok-embedding-small", "input": ["The quick brown fox", "A lazy dog"]},
    ),
    Operation(
        "POST",
        "/v1/tokenize-text",
        "tokenizeText",
        "The tokens of a text, as a model counts them",
        "Tokens",
        {200: TokenList, **refusals(*ALWAYS, *POSTED, *WORKED)},
        body=openai_tokenize.OpenAITokenize.body,
        refined={"Request.model": NOT_EMPTY},
        example={"model": MODEL, "text": "Hello, world!"},
    ),
    *_models("/v1/models", "model", "Model", ModelList, ModelCard, "data"),
    *_models("/v1/language-models", "language model", "LanguageModel", LanguageModelList, LanguageModel, "models"),
    *_models("/v1/embedding-models", "embedding model", "EmbeddingModel", EmbeddingModelList, EmbeddingModel, "models"),
)
