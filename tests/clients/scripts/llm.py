"""Simon Willison's llm, the command, as its own pages show it: the server is a model in extra-openai-models.yaml."""

import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path.home() / "io.datasette.llm"
MODELS = """\
- model_id: grok
  model_name: grok-4
  api_base: {url}
  api_key_name: jubal
  supports_tools: true
  supports_schema: true
"""
COLD = ("-o", "temperature", "0", "-o", "max_tokens", "20")
WEATHER = '''
def get_weather(location: str) -> str:
    """Get current weather for a location"""
    return f"12 degrees in {location}"
'''


def llm(*arguments: str, failing: bool = False) -> str:
    """What the command wrote; `failing`: it must not succeed, and what counts is its complaint."""
    done = subprocess.run(
        [os.path.join(sys.prefix, "bin", "llm"), *arguments],
        env={**os.environ, "LLM_USER_PATH": str(FOLDER)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert bool(done.returncode) == failing, done.stderr
    return (done.stderr if failing else done.stdout).strip()


def prompt() -> object:
    asked = ("-m", "grok", "-s", "You are a helpful assistant.", *COLD, "What is the capital of France?")
    streamed, whole = llm(*asked), llm(*asked, "--no-stream")
    llm("-c", *COLD, "And of Spain?")
    (logged,) = json.loads(llm("logs", "-n", "1", "--json"))
    return {"streamed": streamed, "whole": whole, "input": logged["input_tokens"], "output": logged["output_tokens"]}


def errors() -> object:
    return llm("-m", "grok", "--key", "xai-nobody", "hi", failing=True)


# From here on against the scripted model.


def tools() -> object:
    return llm("-m", "grok", "--functions", WEATHER, "What is the weather in Oslo?")


def schema() -> object:
    return json.loads(llm("-m", "grok", "--schema", "name, age int", "Ada is 36. Who?"))


FOLDER.mkdir(exist_ok=True)
(FOLDER / "extra-openai-models.yaml").write_text(MODELS.format(url=os.environ["JUBAL_URL"]))
llm("keys", "set", "jubal", "--value", os.environ["JUBAL_KEY"])
print(json.dumps({part: globals()[part]() for part in sys.argv[1:]}))
