"""`make bench`: measures Jubal on this machine and writes bench/results.md.

    python bench/run.py [--quick] [--only gateway|engine|tools|agentic]

--quick takes about two minutes and says little on a busy machine; a whole run takes about fifteen. With --only, the
other sections of an earlier results.md stay as they are.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import agentic
import engine
import gateway
import tools
from lab import HERE, BenchError

RESULTS = HERE / "results.md"
SECTIONS = {
    "gateway": ("Gateway", gateway.run),
    "engine": ("Embedded engine", engine.run),
    "tools": ("Function calling", tools.run),
    "agentic": ("Server-side tools", agentic.run),
}
INTRODUCTION = """# Bench results

Written by `make bench`; what the figures mean and how they are taken is in bench/README.md. A verdict is that of the median.
"""


def machine() -> str:
    """What the figures depend on besides the code."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    cpu = named[1] if named else platform.processor() or platform.machine()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    lines = [
        f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"- machine: {cpu}, {os.cpu_count()} cores, {memory:.0f} GB, {platform.system()} {platform.release()}",
        f"- Python {platform.python_version()}, "
        + ", ".join(
            f"{name} {installed(name)}" for name in ("jubal", "uvicorn", "uvloop", "aiohttp", "msgspec", "xllamacpp")
        )
        + commit(),
        f"- command: `python bench/run.py{''.join(' ' + argument for argument in sys.argv[1:])}`",
    ]
    return "\n".join(lines)


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def commit() -> str:
    """`, commit abc1234` where this is a git checkout."""
    done = subprocess.run(["git", "-C", str(HERE), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return f", commit {done.stdout.strip()}" if done.returncode == 0 else ""


def kept_sections() -> dict[str, str]:
    """The sections of an earlier results.md, by title."""
    if not RESULTS.exists():
        return {}
    parts = re.split(r"^## (.+)$", RESULTS.read_text(), flags=re.MULTILINE)
    return {title: text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--only", choices=SECTIONS, help="one part of the bench")
    chosen = parser.parse_args()
    texts = kept_sections()
    for name in [chosen.only] if chosen.only else SECTIONS:
        title, run = SECTIONS[name]
        try:
            texts[title] = f"{machine()}\n\n{run(chosen.quick)}"
        except BenchError as error:
            print(f"bench: {name}: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("bench: stopped; all processes are ended", file=sys.stderr)
            return 130
        print(f"\n## {title}\n\n{texts[title]}", flush=True)
    titles = [title for title, _ in SECTIONS.values() if title in texts]
    RESULTS.write_text(INTRODUCTION + "".join(f"\n## {title}\n\n{texts[title]}\n" for title in titles))
    print(f"\nwritten: {RESULTS.relative_to(HERE.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
