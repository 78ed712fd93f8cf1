"""Function calling on the embedded model: 50 small cases, each with four functions of which one fits.

What is counted: an answer that is a call at all, the right function, and arguments that follow its JSON Schema. The last must
always be 50 of 50, as decoding is constrained; the others are the model's own skill.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from typing import Any

import engine
from lab import Lab, table

TOKENS_MAX = 160
REQUEST_TIMEOUT_S = 120.0
MODEL = "grok-4"


def function(name: str, description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TEXT = {"type": "string", "maxLength": 60}
FUNCTIONS = {
    "get_weather": function("get_weather", "Current weather of a city", city=TEXT),
    "convert_currency": function("convert_currency", "Convert an amount of money", amount={"type": "number"}, to={"enum": ["USD", "EUR", "JPY"]}),
    "set_alarm": function("set_alarm", "Set an alarm clock", time=TEXT),
    "send_email": function("send_email", "Send an email to a person", to=TEXT, subject=TEXT),
    "play_music": function("play_music", "Play a song or an artist", query=TEXT),
    "search_flights": function("search_flights", "Search flights between two cities", origin=TEXT, destination=TEXT),
    "add_numbers": function("add_numbers", "Add two numbers", a={"type": "integer"}, b={"type": "integer"}),
    "translate": function("translate", "Translate a text into a language", text=TEXT, language=TEXT),
    "book_table": function("book_table", "Book a restaurant table", people={"type": "integer", "minimum": 1, "maximum": 20}),
    "turn_light": function("turn_light", "Switch the light of a room", room=TEXT, on={"type": "boolean"}),
}  # fmt: skip
QUESTIONS = {
    "get_weather": ["What is the weather in Oslo?", "Is it raining in London now?", "How warm is Madrid today?", "Weather in Tokyo, please.", "Do I need a coat in Berlin today?"],
    "convert_currency": ["Convert 100 euros to dollars.", "How many yen are 50 dollars?", "What is 20 USD in EUR?", "Change 300 dollars into euros.", "I have 10 euros, how much is that in yen?"],
    "set_alarm": ["Wake me up at 7 am.", "Set an alarm for 6:30.", "Alarm at noon, please.", "I have to get up at five.", "Set my alarm clock to 8 o'clock."],
    "send_email": ["Send an email to Anna about the meeting.", "Email Bob that I am late.", "Write a mail to my boss about holidays.", "Send Carla an email with the subject Lunch.", "Mail Tom about the invoice."],
    "play_music": ["Play some jazz.", "Play a song by the Beatles.", "I want to hear Mozart.", "Put on Bohemian Rhapsody.", "Play relaxing music."],
    "search_flights": ["Find flights from Paris to Rome.", "Search a flight from Oslo to New York.", "I want to fly from Berlin to Madrid.", "Flights from Boston to Chicago?", "Show flights from Tokyo to Seoul."],
    "add_numbers": ["Add 5 and 7.", "What is 12 plus 30?", "Sum of 100 and 250?", "Add 3 to 9.", "How much is 44 plus 11?"],
    "translate": ["Translate 'good morning' into French.", "How do you say 'thank you' in German?", "Translate 'cat' to Spanish.", "Say 'hello' in Italian.", "Translate 'I am hungry' into Japanese."],
    "book_table": ["Book a table for four.", "Reserve a restaurant table for two people.", "I need a table for 6 tonight.", "Table for three, please.", "Book us a table for eight."],
    "turn_light": ["Turn on the light in the kitchen.", "Switch off the bedroom light.", "Lights on in the living room.", "Turn the bathroom light off.", "Light on in the hall, please."],
}  # fmt: skip


def cases() -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(question, the function that fits, the functions on offer): 50 of them, always the same."""
    names = list(FUNCTIONS)
    found = []
    for place, name in enumerate(names):
        for number, question in enumerate(QUESTIONS[name]):
            others = [names[(place + step) % len(names)] for step in (1 + number, 3 + number % 2, 7)]
            offered = list(dict.fromkeys([name, *others]))
            offered = offered[number % len(offered) :] + offered[: number % len(offered)]
            found.append((question, name, [FUNCTIONS[one] for one in offered]))
    return found


def ask(server: engine.Server, question: str, tools: list[dict[str, Any]], choice: str) -> list[dict[str, Any]]:
    """The calls of one answer."""
    body = {
        "model": MODEL, "messages": [{"role": "user", "content": question}], "tools": tools, "tool_choice": choice,
        "parallel_tool_calls": False, "temperature": 0, "max_tokens": TOKENS_MAX,
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=REQUEST_TIMEOUT_S)
    headers = {"content-type": "application/json", "authorization": f"Bearer {server.key}"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    calls: list[dict[str, Any]] = answer["choices"][0]["message"].get("tool_calls") or []
    return calls


def valid(call: dict[str, Any]) -> bool:
    """The arguments follow the schema: these schemas use few keywords, so that no validator is needed."""
    schema = FUNCTIONS[call["function"]["name"]]["function"]["parameters"]["properties"]
    try:
        arguments = json.loads(call["function"]["arguments"])
    except ValueError:
        return False
    return set(arguments) == set(schema) and all(fits(arguments[name], schema[name]) for name in schema)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    if "enum" in schema:
        return value in schema["enum"]
    kinds = {"string": str, "number": (int, float), "integer": int, "boolean": bool}
    if not isinstance(value, kinds[schema["type"]]) or (schema["type"] != "boolean" and isinstance(value, bool)):
        return False
    if isinstance(value, str):
        return len(value) <= schema["maxLength"]
    return schema.get("minimum", value) <= value <= schema.get("maximum", value)


def run(quick: bool) -> str:
    """The table. quick: ten cases."""
    chosen = cases()[:: 5 if quick else 1]
    rows = []
    with Lab() as lab:
        server, _, _ = engine.start_jubal(lab)
        for choice in ("required", "auto"):
            called = right = good = 0
            for question, name, tools in chosen:
                calls = ask(server, question, tools, choice)
                called += bool(calls)
                right += bool(calls) and calls[0]["function"]["name"] == name
                good += bool(calls) and all(valid(call) for call in calls)
            rows.append([f"`{choice}`", str(len(chosen)), str(called), str(right), f"{good} of {called}"])
    head = ["tool_choice", "cases", "answered with a call", "right function", "valid arguments"]
    return "SmolLM2-135M, prompted tools with constrained decoding, temperature 0.\n\n" + table(head, rows)


def sandbox(quick: bool) -> str:
    """The table of code execution: a cold start, a session's first call and later calls, as the tool's caller waits for them."""
    rows = asyncio.run(sandbox_rows(20 if quick else 100))
    head = [
        "interpreter",
        "memory bound",
        "cold start, s",
        "first call p50 / p90, ms",
        "later call p50 / p90, ms",
        "close p50, ms",
    ]
    return table(head, rows)


async def sandbox_rows(rounds: int) -> list[list[str]]:
    from jubal.tools.code_execution import cgroup
    from jubal.tools.code_execution.forks import ForkSandbox
    from jubal.tools.code_execution.limits import LIBRARIES, Limits

    rows = []
    for name, libraries in (("with libraries", LIBRARIES), ("bare", ())):
        for bound, groups in (("cgroup", cgroup.find), ("watchdog", lambda: None)):
            if bound == "cgroup" and groups() is None:
                continue
            made = ForkSandbox(Limits(libraries=libraries), groups=groups)
            try:
                began = time.perf_counter()
                await made.check()
                cold_s = time.perf_counter() - began
                times = [await one_session(made) for _ in range(rounds)]
            finally:
                await made.close()
            first, later, close = (sorted(column) for column in zip(*times, strict=True))
            rows.append([name, bound, f"{cold_s:.2f}", spread(first), spread(later), spread(close).split(" / ")[0]])
    return rows


async def one_session(made: Any) -> tuple[float, float, float]:
    """ms of open and first call, of a second call, and of the end. A pause after it, as requests leave between their tools."""
    began = time.perf_counter()
    opened = await made.open()
    await opened.run("print(1)")
    first = time.perf_counter()
    await opened.run("print(2)")
    later = time.perf_counter()
    await opened.close()
    closed = time.perf_counter()
    await asyncio.sleep(0.1)
    return (first - began) * 1000, (later - first) * 1000, (closed - later) * 1000


def spread(ordered: list[float]) -> str:
    """p50 / p90."""
    return f"{ordered[len(ordered) // 2]:.1f} / {ordered[len(ordered) * 9 // 10]:.1f}"
