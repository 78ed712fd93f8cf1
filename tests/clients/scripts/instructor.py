"""instructor as its own pages show it: a pydantic model in, an object of it out."""

import json
import os
import sys
from enum import StrEnum
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field, field_validator


class User(BaseModel, extra="forbid"):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


class Priority(StrEnum):
    low = "low"
    high = "high"


class Ticket(BaseModel, extra="forbid"):
    title: str = Field(max_length=40)  # a call comes whole, and the small model would write on
    priority: Priority
    kind: Literal["bug", "wish"]


class Sum(BaseModel):
    """Refuses the first answer, whatever it is: instructor must ask again, with the complaint."""

    number: int = Field(ge=0, le=999)

    @field_validator("number")
    @classmethod
    def second(cls, value: int) -> int:
        tries.append(value)
        if len(tries) == 1:
            raise ValueError("not this one: give another number")
        return value


tries: list[int] = []
openai = OpenAI(base_url=os.environ["JUBAL_URL"], api_key=os.environ["JUBAL_KEY"], max_retries=0)
MODES = {
    "tools": instructor.Mode.TOOLS,
    "json_schema": instructor.Mode.JSON_SCHEMA,
    "json": instructor.Mode.JSON,
}
JASON = dict.fromkeys(MODES, "Extract: Jason is 25 years old")
# In this mode only the prompt tells what to answer, and the small model needs to be shown.
JASON["json"] = 'Jason is 25 years old. Answer with this object, filled in: {"name": "...", "age": 0}'


def ask(mode: str, kind: type, text: str, **more: object) -> BaseModel:
    client = instructor.from_openai(openai, mode=MODES[mode])
    return client.create(
        model="grok-4",
        response_model=kind,
        messages=[{"role": "user", "content": text}],
        max_tokens=120,
        temperature=0,
        **{"max_retries": 0, **more},
    )


def extract(mode: str) -> object:
    user, completion = instructor.from_openai(openai, mode=MODES[mode]).create_with_completion(
        model="grok-4",
        response_model=User,
        messages=[{"role": "user", "content": JASON[mode]}],
        max_tokens=120,
        temperature=0,
        max_retries=2,
    )
    assert isinstance(user, User)
    return {**user.model_dump(), "model": completion.model, "tokens": completion.usage.total_tokens}


def ticket(mode: str) -> object:
    made = ask(mode, Ticket, "File this: the login page crashes, it is urgent.")
    assert isinstance(made, Ticket)
    return made.model_dump(mode="json")


def again(mode: str) -> object:
    made = ask(mode, Sum, "Name a number.", max_retries=2)
    return {"number": made.number, "tries": len(tries)}


def partial(mode: str) -> object:
    """Streamed: objects that fill up."""
    client = instructor.from_openai(openai, mode=MODES[mode])
    parts = list(
        client.create_partial(
            model="grok-4",
            response_model=User,
            messages=[{"role": "user", "content": JASON[mode]}],
            max_tokens=120,
            temperature=0,
        )
    )
    return {"parts": len(parts), "last": parts[-1].model_dump()}


print(
    json.dumps(
        {f"{part}:{mode}": globals()[part](mode) for part, _, mode in (one.partition(":") for one in sys.argv[1:])}
    )
)
