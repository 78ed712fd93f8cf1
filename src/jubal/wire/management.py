"""The management API (xai-api.md 21): its bodies, its answers, and what they say for the OpenAPI document.

JSON as proto3 writes it: camelCase, 64-bit numbers as strings, times as RFC 3339. Money: US cents, in `{"val": "123"}`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from jubal.core import errors as core
from jubal.core.errors import BadRequest
from jubal.core.money import TICKS_PER_USD
from jubal.wire.openai_schema import ALWAYS, refusals
from jubal.wire.openapi import Answer, Operation, Schema

MICRO: Final = 1_000_000
STAMP_US_MAX: Final = 253_402_300_799_999_999
CENT: Final = TICKS_PER_USD // 100
REFUSED: Final = (*ALWAYS, core.BadRequest, core.NotFound)
SENT: Final = (*REFUSED, core.Undecodable, core.BodyTooLarge, core.UnsupportedMedia)


# --------------------------------------------------------------------------------------------------------------- values


def stamp(us: int) -> str:
    """Microseconds since 1970 as `2026-01-05T09:12:44.120391Z`. What is beyond the calendar is told as its end."""
    us = min(us, STAMP_US_MAX)
    return datetime.fromtimestamp(us // MICRO, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{us % MICRO:06}Z"


def microseconds(text: str, param: str) -> int:
    """The reverse; a time without a zone is UTC. Raises `BadRequest` naming the parameter."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return int(moment.timestamp()) * MICRO + moment.microsecond
    except (ValueError, OverflowError):
        raise BadRequest(
            f"`{param}` must be a time such as 2026-12-31T12:00:00Z; got `{text[:100]}`.",
            param=param,
            code="invalid_value",
        ) from None


def whole(text: str | int | None, param: str) -> int | None:
    """A 64-bit number, which proto3's JSON writes as text. "0" and None: none. Raises `BadRequest` naming the parameter."""
    if text is None or text in ("", "0", 0):
        return None
    if isinstance(text, str) and not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadRequest(f"`{param}` must be a whole number.", param=param, code="invalid_value")
    return int(text)


def ticks(cents: str | int, param: str) -> int:
    """US cents, as a client writes them, in ticks. Raises `BadRequest` naming the parameter."""
    return (whole(cents, param) or 0) * CENT


def cents(ticks: int) -> str:
    """The nearest whole number of US cents."""
    return str(round(ticks / CENT))


def shares(ticks: Iterable[int]) -> list[str]:
    """Amounts as whole numbers of cents that add up to the cents of their sum: each is less than a cent away from its own."""
    shown, before, sum_ticks = [], 0, 0
    for one in ticks:
        sum_ticks += one
        after = round(sum_ticks / CENT)
        shown.append(str(after - before))
        before = after
    return shown


# --------------------------------------------------------------------------------------------------------- one's own key


class OwnKey(msgspec.Struct):
    """GET /v1/api-key (xai-api.md 2.3)."""

    redacted_api_key: str
    user_id: str
    name: str
    create_time: str
    modify_time: str
    modified_by: str
    team_id: str
    acls: list[str]
    api_key_id: str
    team_blocked: bool
    api_key_blocked: bool
    api_key_disabled: bool


class MyKey(msgspec.Struct):
    redacted_api_key: str
    api_key_id: str
    blocked: bool
    disabled: bool


class Me(msgspec.Struct):
    """GET /v1/me (xai-api.md 2.4). oauth: this server knows keys only."""

    user_id: str
    team_id: str
    zdr_status: str
    team_blocked: bool
    api_key: MyKey | None
    oauth: None


# ------------------------------------------------------------------------------------------------------------------ keys


class ApiKey(msgspec.Struct, rename="camel"):
    """api_key: the secret, in the answers that make one. blocked, last_use_time: not in xAI's."""

    redacted_api_key: str
    user_id: str
    name: str
    create_time: str
    modify_time: str
    modified_by: str
    team_id: str
    api_key_id: str
    disabled: bool
    blocked: bool
    expire_time: str | None
    last_use_time: str | None
    qps: int | None
    qpm: int | None
    tpm: str | None
    acl_strings: list[str]
    api_key: str | UnsetType = UNSET


class ApiKeyList(msgspec.Struct, rename="camel"):
    api_keys: list[ApiKey]
    pagination_token: str | UnsetType = UNSET


class Nothing(msgspec.Struct):
    """An empty object."""


class Propagation(msgspec.Struct, rename="camel"):
    """By gateway: whether it knows of the last change."""

    ic_propagation: dict[str, bool]


class EndpointAcl(msgspec.Struct):
    acl: str
    description: str
    namespace: str
    key: str
    value: str


class EndpointAcls(msgspec.Struct):
    acls: list[EndpointAcl]


class ManagementKey(msgspec.Struct, rename="camel"):
    """ip_ranges: this server binds keys to none."""

    api_key_id: str
    team_id: str
    scope: str
    scope_id: str
    owner_user_id: str
    create_time: str
    modify_time: str
    name: str
    acls: list[str]
    redacted_api_key: str
    ip_ranges: None


class ManagedTeam(msgspec.Struct, rename="camel"):
    team_id: str
    name: str
    create_time: str
    blocked: bool
    tier: str


class ManagedTeams(msgspec.Struct):
    teams: list[ManagedTeam]


class _CreateKey(msgspec.Struct, rename="camel"):
    name: str
    acls: list[str] | None = None
    qps: int | None = None
    qpm: int | None = None
    tpm: str | int | None = None
    expire_time: str | None = None


class _KeyChanges(msgspec.Struct, rename="camel"):
    """What a field mask picks from."""

    name: str | UnsetType | None = UNSET
    acls: list[str] | UnsetType | None = UNSET
    acl_strings: list[str] | UnsetType | None = UNSET
    qps: int | UnsetType | None = UNSET
    qpm: int | UnsetType | None = UNSET
    tpm: str | int | UnsetType | None = UNSET
    expire_time: str | UnsetType | None = UNSET
    disabled: bool | UnsetType | None = UNSET


class _UpdateKey(msgspec.Struct, rename="camel"):
    api_key: _KeyChanges
    field_mask: str = ""


class _RotateKey(msgspec.Struct, rename="camel"):
    expire_time: str | None = None
    old_secret_expire_time: str | None = None


CreateKey = _CreateKey
UpdateKey = _UpdateKey
RotateKey = _RotateKey
FIELDS: Final = {
    **{"name": "name", "disabled": "disabled", "qps": "qps", "qpm": "qpm", "tpm": "tpm"},
    **{"acls": "acls", "aclStrings": "acl_strings", "acl_strings": "acl_strings"},
    **{"expireTime": "expire_time", "expire_time": "expire_time"},
}
"""What a field mask may name, and the field of `_KeyChanges` that it means."""


def changes_of(asked: _UpdateKey) -> dict[str, Any]:
    """What a patch changes, in the words of the accounts: name, acls, rps, rpm, tpm, expires_us, disabled.

    With a mask: its fields, and one that the body does not hold is cleared. Without: the fields of the body. Raises `BadRequest`
    naming the field.
    """
    masked = [path.strip() for path in asked.field_mask.split(",") if path.strip()]
    for path in masked:
        if path not in FIELDS:
            raise BadRequest(
                f"`fieldMask` names `{path[:100]}`. It may name {', '.join(sorted(FIELDS))}.",
                param="fieldMask",
                code="invalid_value",
            )
    given = asked.api_key
    names = [FIELDS[path] for path in masked] or [
        name for name in given.__struct_fields__ if getattr(given, name) is not UNSET
    ]
    if not names:
        raise BadRequest("There is nothing to change.", param="apiKey", code="missing_field")
    changes: dict[str, Any] = {}
    for name in names:
        value = getattr(given, name)
        changes |= _change(name, None if value is UNSET else value)
    return changes


def _change(name: str, value: Any) -> dict[str, Any]:
    match name:
        case "name" if value is None:
            raise BadRequest("A key must have a name.", param="apiKey.name", code="missing_field")
        case "name":
            return {"name": value}
        case "acls" | "acl_strings":
            return {"acls": tuple(value or ())}
        case "qps":
            return {"rps": whole(value, "apiKey.qps")}
        case "qpm":
            return {"rpm": whole(value, "apiKey.qpm")}
        case "tpm":
            return {"tpm": whole(value, "apiKey.tpm")}
        case "disabled":
            return {"disabled": bool(value)}
    return {"expires_us": None if not value else microseconds(value, "apiKey.expireTime")}


# ---------------------------------------------------------------------------------------------------------------- models


class Features(msgspec.Struct, rename="camel"):
    function_calling: bool
    structured_outputs: bool
    reasoning: bool


class ClusterLanguageModel(msgspec.Struct, rename="camel"):
    """Prices: ticks (1e-10 US dollars) for each token, as the team pays them. The long ones are of requests whose prompt reaches
    the threshold; "0" where there are none. search_price: cents for 1,000 searches of the web. rps, rpm, tpm: the most that
    the team may do with this model, by its limits on the model and on all models; "0": no limit."""

    name: str
    version: str
    input_modalities: list[str]
    output_modalities: list[str]
    prompt_text_token_price: str
    prompt_image_token_price: str
    cached_prompt_token_price: str
    completion_text_token_price: str
    prompt_text_token_price_long_context: str
    cached_prompt_token_price_long_context: str
    completion_token_price_long_context: str
    long_context_threshold: str
    search_price: str
    rps: str
    rpm: str
    tpm: str
    cluster: str
    max_prompt_length: int
    aliases: list[str]
    features: Features


class ClusterEmbeddingModel(msgspec.Struct, rename="camel"):
    name: str
    version: str
    input_modalities: list[str]
    output_modalities: list[str]
    prompt_text_token_price: str
    cluster: str
    aliases: list[str]


class ClusterConfig(msgspec.Struct, rename="camel"):
    cluster_name: str
    language_models: list[ClusterLanguageModel]
    embedding_models: list[ClusterEmbeddingModel]
    image_generation_models: list[str]
    audio_models: list[str]
    video_generation_models: list[str]


class ClusterConfigs(msgspec.Struct, rename="camel"):
    cluster_configs: list[ClusterConfig]


# ---------------------------------------------------------------------------------------------------------------- limits


class OwnLimits(msgspec.Struct):
    """What the team set itself. "0": nothing."""

    rps: str
    rpm: str
    tpm: str


class TeamLimit(msgspec.Struct):
    """model: a public name, or * for all models together. rps, rpm, tpm: what holds; "0": no limit."""

    model: str
    rps: str
    rpm: str
    tpm: str
    own: OwnLimits


class TeamLimitList(msgspec.Struct):
    """That of all models first."""

    limits: list[TeamLimit]


class _SetTeamLimit(msgspec.Struct):
    """What is absent stays as it was. "0": nothing."""

    model: str = "*"
    rps: str | int | None = None
    rpm: str | int | None = None
    tpm: str | int | None = None


SetTeamLimit = _SetTeamLimit


def rate(limit: int | None) -> str:
    """A rate limit as this API writes it."""
    return str(limit or 0)


# ----------------------------------------------------------------------------------------------------------------- audit


class AuditActor(msgspec.Struct):
    kind: str
    id: str
    name: str


class AuditResource(msgspec.Struct):
    kind: str
    id: str


class AuditEvent(msgspec.Struct, rename="camel"):
    """before, after: what the act changed."""

    event_id: str
    time: str
    actor: AuditActor
    action: str
    resource: AuditResource
    team_id: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    request_id: str | None
    address: str | None


class AuditEvents(msgspec.Struct, rename="camel"):
    """The newest first."""

    events: list[AuditEvent]
    pagination_token: str | UnsetType = UNSET


# --------------------------------------------------------------------------------------------------------------- billing


class Cents(msgspec.Struct):
    val: Annotated[str, Meta(description="US cents.")]


class Address(msgspec.Struct):
    line1: str = ""
    line2: str = ""
    city: str = ""
    country: str = ""
    postalCode: str = ""
    state: str = ""


class BillingInfo(msgspec.Struct, rename="camel"):
    name: str = ""
    address: Address = msgspec.field(default_factory=Address)
    email: str = ""
    tax_id_type: str = ""
    tax_number: str = ""


class BillingInfoAnswer(msgspec.Struct, rename="camel"):
    billing_info: BillingInfo


class _SetBillingInfo(msgspec.Struct, rename="camel"):
    billing_info: BillingInfo


class _SetPaymentMethod(msgspec.Struct, rename="camel"):
    payment_method_id: str


class _Cents(msgspec.Struct):
    val: str | int


class _SetSpendingLimit(msgspec.Struct, rename="camel"):
    desired_soft_spending_limit: _Cents | None


class _TopUp(msgspec.Struct):
    amount: _Cents


SetBillingInfo = _SetBillingInfo
SetPaymentMethod = _SetPaymentMethod
SetSpendingLimit = _SetSpendingLimit
TopUp = _TopUp


class InvoiceLine(msgspec.Struct, rename="camel"):
    """unit_price: 1e-6 cent for each unit, on average. amount: cents; those of all lines add up to the subtotal."""

    cluster_name: str
    description: str
    unit_type: str
    unit_price: str
    num_units: str
    amount: str


class CoreInvoice(msgspec.Struct, rename="camel"):
    lines: list[InvoiceLine]
    amount_before_vat: str
    vat_cost: str
    amount_after_vat: str
    auto_credits_issued: str
    default_credits_issued: str
    total_with_corr: Cents
    prepaid_credits: Cents
    prepaid_credits_used: Cents


class BillingCycle(msgspec.Struct):
    year: int
    month: int


class InvoicePreview(msgspec.Struct, rename="camel"):
    """effective_spending_limit: null for none."""

    core_invoice: CoreInvoice
    effective_spending_limit: str | None
    default_credits: str
    billing_cycle: BillingCycle


class Monthly(msgspec.Struct, rename="camel"):
    """What kind of invoice it is: this server has no others."""

    billing_cycle: BillingCycle


class Invoice(msgspec.Struct, rename="camel"):
    """charger_attempts, invoice_pdf_asset_key_suffix: empty, as this server takes no payments and makes no PDF."""

    team_id: str
    invoice_id: str
    invoice_number: str
    create_time: str
    invoice_status: str
    billing_cycle: BillingCycle
    first_desired_next_cycle_ts: str
    charger_attempts: list[str]
    invoice_pdf_asset_key_suffix: str
    lines: list[InvoiceLine]
    subtotal: str
    tax: str
    total: str
    monthly: Monthly


class InvoiceList(msgspec.Struct):
    invoices: list[Invoice]


class PaymentMethods(msgspec.Struct, rename="camel"):
    payment_methods: list[str]
    pending_payment_method: None


class Limits(msgspec.Struct, rename="camel"):
    """What a team may owe; null: no limit. hard_sl_auto: by its tier. soft_sl: what it set itself. effective_sl: the lower."""

    hard_sl_auto: Cents | None
    effective_hard_sl: Cents | None
    soft_sl: Cents | None
    effective_sl: Cents | None


class SpendingLimits(msgspec.Struct, rename="camel"):
    spending_limits: Limits


class SoftLimit(msgspec.Struct, rename="camel"):
    """Null: no limit of the team's own."""

    this_bp_soft_spending_limit: Cents | None


class PrepaidChange(msgspec.Struct, rename="camel"):
    """amount: below zero where credit came, as in xAI's. spend_bp_key_*: the month in which requests used it, where they did.
    create_ts: the same as create_time."""

    team_id: str
    change_origin: str
    topup_status: str
    amount: Cents
    invoice_id: str
    invoice_number: str
    create_time: str
    create_ts: str
    spend_bp_key_year: int | UnsetType = UNSET
    spend_bp_key_month: int | UnsetType = UNSET


class PrepaidBalance(msgspec.Struct):
    """total: the sign is inverted, as in xAI's: "-2500" is 25 dollars of credit."""

    changes: list[PrepaidChange]
    total: Cents


class _TimeRange(msgspec.Struct, rename="camel"):
    start_time: str
    end_time: str
    timezone: str = "Etc/GMT"


class _Measure(msgspec.Struct):
    name: str
    aggregation: str = "AGGREGATION_SUM"


class _AnalyticsRequest(msgspec.Struct, rename="camel"):
    time_range: _TimeRange
    values: list[_Measure]
    time_unit: str = "TIME_UNIT_DAY"
    group_by: list[str] = []
    filters: list[str] = []


class _UsageQuery(msgspec.Struct, rename="camel"):
    analytics_request: _AnalyticsRequest


UsageQuery = _UsageQuery
AnalyticsRequest = _AnalyticsRequest


class DataPoint(msgspec.Struct):
    timestamp: str
    values: list[float]


class TimeSeries(msgspec.Struct, rename="camel"):
    group: list[str]
    group_labels: list[str]
    data_points: list[DataPoint]


class UsageAnswer(msgspec.Struct, rename="camel"):
    """limit_reached: there is more than this."""

    time_series: list[TimeSeries]
    limit_reached: bool


# ------------------------------------------------------------------------------------------------------------ operations

KEYS: Final = "/auth/teams/{team_id}/api-keys"
KEY: Final = "/auth/api-keys/{api_key_id}"
BILLING: Final = "/v1/billing/teams/{team_id}"
PAGE: Final[dict[str, Schema]] = {
    "pageSize": {"type": "integer", "minimum": 1, "maximum": 1000},
    "paginationToken": {"type": "string"},
}
MONTH: Final[dict[str, Schema]] = {
    name: {"type": "integer", "minimum": 1, "maximum": 9998 if name.endswith("year") else 12}
    for name in ("billingCycle.year", "billingCycle.month", "since.year", "since.month")
}
USAGE_EXAMPLE: Final[Schema] = {
    "analyticsRequest": {
        "timeRange": {"startTime": "2026-10-01 00:00:00", "endTime": "2026-10-08 00:00:00", "timezone": "Etc/GMT"},
        "timeUnit": "TIME_UNIT_DAY",
        "values": [{"name": "usd", "aggregation": "AGGREGATION_SUM"}],
        "groupBy": ["api_key_id", "description"],
    }
}


def _operation(
    method: str,
    path: str,
    name: str,
    summary: str,
    tag: str,
    answer: type,
    *,
    body: type | None = None,
    example: Schema | None = None,
    query: dict[str, Schema] | None = None,
    refined: dict[str, Schema] | None = None,
) -> Operation:
    answers: dict[int, Answer] = {200: answer, **refusals(*(REFUSED if body is None else SENT))}
    return Operation(
        method,
        path,
        name,
        summary,
        tag,
        answers,
        body=body,
        example=example,
        query=query or {},
        refined=refined or {},
        management=True,
    )


OPERATIONS: Final = (
    Operation("GET", "/v1/api-key", "getApiKey", "The calling key", "Keys", {200: OwnKey, **refusals(*ALWAYS)}),
    Operation("GET", "/v1/me", "getMe", "Who is calling", "Keys", {200: Me, **refusals(*ALWAYS)}),
    _operation(
        "POST",
        KEYS,
        "createApiKey",
        "Make a key; its secret is told this once",
        "Management",
        ApiKey,
        body=_CreateKey,
        refined={"CreateKey.name": {"minLength": 1, "maxLength": 200}},
        example={"name": "ci", "acls": ["api-key:endpoint:chat", "api-key:model:*"], "qpm": 60, "tpm": "100000"},
    ),
    _operation(
        "GET",
        KEYS,
        "listApiKeys",
        "The keys of a team, oldest first",
        "Management",
        ApiKeyList,
        query={**PAGE, "aclFilters": {"type": "array", "items": {"type": "string"}}, "activeOnly": {"type": "boolean"}},
    ),
    _operation("GET", KEY, "describeApiKey", "One key", "Management", ApiKey),
    _operation(
        "PUT",
        KEY,
        "updateApiKey",
        "Change the fields of a key that a mask names",
        "Management",
        ApiKey,
        body=_UpdateKey,
        example={"apiKey": {"name": "ci-2", "tpm": "200000"}, "fieldMask": "name,tpm"},
    ),
    _operation("DELETE", KEY, "deleteApiKey", "Remove a key for good", "Management", Nothing),
    _operation(
        "POST",
        KEY + "/rotate",
        "rotateApiKey",
        "A new secret; the old one works for 24 hours more, or as long as is asked, up to 7 days",
        "Management",
        ApiKey,
        body=_RotateKey,
        example={},
    ),
    _operation(
        "GET",
        KEY + "/propagation",
        "checkApiKeyPropagation",
        "Whether all gateways know of the last change",
        "Management",
        Propagation,
    ),
    _operation(
        "GET",
        "/auth/teams/{team_id}/models",
        "listTeamModels",
        "The models that ACLs may name",
        "Management",
        ClusterConfigs,
    ),
    _operation(
        "GET",
        "/auth/teams/{team_id}/limits",
        "listTeamLimits",
        "The rate limits of a team",
        "Management",
        TeamLimitList,
    ),
    _operation(
        "PUT",
        "/auth/teams/{team_id}/limits",
        "setTeamLimit",
        "Limit one's own team: never to more than it was given",
        "Management",
        TeamLimit,
        body=_SetTeamLimit,
        example={"model": "grok-4", "rpm": "600", "tpm": "100000"},
    ),
    _operation(
        "GET",
        "/auth/teams/{team_id}/endpoints",
        "listEndpointAcls",
        "The endpoints that ACLs may name",
        "Management",
        EndpointAcls,
    ),
    _operation(
        "GET",
        "/auth/management-keys/validation",
        "validateManagementKey",
        "The calling management key",
        "Management",
        ManagementKey,
    ),
    _operation("GET", "/auth/teams", "listTeams", "The team of the calling key", "Management", ManagedTeams),
    _operation(
        "GET",
        "/audit/teams/{team_id}/events",
        "listAuditEvents",
        "Who changed what, newest first",
        "Management",
        AuditEvents,
        query={
            **PAGE,
            **{name: {"type": "string", "format": "date-time"} for name in ("startTime", "endTime")},
        },
    ),
    _operation(
        "GET",
        BILLING + "/billing-info",
        "getBillingInfo",
        "Whom invoices are addressed to",
        "Billing",
        BillingInfoAnswer,
    ),
    _operation(
        "POST",
        BILLING + "/billing-info",
        "setBillingInfo",
        "Whom invoices are to be addressed to",
        "Billing",
        Nothing,
        body=_SetBillingInfo,
        example={"billingInfo": {"name": "Example Ltd", "email": "accounts@example.com"}},
    ),
    _operation(
        "GET", BILLING + "/invoices", "listInvoices", "Months that are over", "Billing", InvoiceList, query=MONTH
    ),
    _operation(
        "GET", BILLING + "/payment-method", "listPaymentMethods", "Payment methods: none", "Billing", PaymentMethods
    ),
    _operation(
        "POST",
        BILLING + "/payment-method/default",
        "setDefaultPaymentMethod",
        "Choose a payment method: 404, as there are none",
        "Billing",
        Nothing,
        body=_SetPaymentMethod,
    ),
    _operation(
        "GET",
        BILLING + "/postpaid/invoice/preview",
        "getAmountToPay",
        "This month so far",
        "Billing",
        InvoicePreview,
    ),
    _operation("GET", BILLING + "/postpaid/spending-limits", "getSpendingLimits", "How far", "Billing", SpendingLimits),
    _operation(
        "POST",
        BILLING + "/postpaid/spending-limits",
        "setSoftSpendingLimit",
        "Limit what one's own team may owe, below what it was given; null: no limit of its own",
        "Billing",
        SoftLimit,
        body=_SetSpendingLimit,
        example={"desiredSoftSpendingLimit": {"val": "5000"}},
    ),
    _operation(
        "GET",
        BILLING + "/prepaid/balance",
        "listPrepaidBalanceChanges",
        "Prepaid credit and what moved it",
        "Billing",
        PrepaidBalance,
    ),
    _operation(
        "POST",
        BILLING + "/prepaid/top-up",
        "topUp",
        "Buy credit: 404, as this server takes no payments",
        "Billing",
        Nothing,
        body=_TopUp,
    ),
    _operation(
        "POST",
        BILLING + "/usage",
        "analyzeBillingItems",
        "Usage as time series",
        "Billing",
        UsageAnswer,
        body=_UsageQuery,
        example=USAGE_EXAMPLE,
    ),
)
