"""code_execution as a model sees it: real code in the real sandbox."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from jubal.core.server_tools import CodeExecution
from jubal.testing.tools import check_tools
from jubal.tools.base import ToolFailed, ToolOutput
from jubal.tools.code_execution.family import NAME, CodeExecutionFamily, CodeSession
from jubal.tools.code_execution.forks import ForkSandbox
from jubal.tools.code_execution.limits import Limits
from tests.tools.sandboxes import sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = Limits(timeout_s=60, files_max=4, files_bytes=200_000, output_bytes=1000, cpu_s=60)
QUICK = Limits(timeout_s=3.0, libraries=())


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def warm() -> AsyncIterator[ForkSandbox]:
    async with sandbox(LIMITS) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def session(warm: ForkSandbox) -> AsyncIterator[CodeSession]:
    opened = CodeExecutionFamily(warm, LIMITS).open(CodeExecution())
    yield opened
    await opened.close()


async def call(session: CodeSession, code: str) -> ToolOutput:
    return await session.call("code_execution", json.dumps({"code": code}))


async def run(session: CodeSession, code: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((await call(session, code)).text)
    assert list(told) == ["stdout", "stderr", "output_files", "error", "ret"]
    assert all(isinstance(value, str) for name, value in told.items() if name != "output_files")
    return told


async def test_it_keeps_the_promise_of_tools() -> None:
    async with sandbox(Limits(timeout_s=60, libraries=())) as made:
        family = CodeExecutionFamily(made, Limits(timeout_s=60, libraries=()))
        slow = json.dumps({"code": "while True: pass"})
        await check_tools(family, CodeExecution(), NAME, '{"code": "print(1)"}', slow=(NAME, slow))


async def test_the_function(session: CodeSession) -> None:
    (function,) = await session.functions()
    assert function.name == "code_execution"
    assert json.loads(function.parameters or "")["required"] == ["code"]


async def test_output_and_last_expression(session: CodeSession) -> None:
    told = await run(session, "import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7")
    assert told == {"stdout": "out\n", "stderr": "err\n", "output_files": {}, "error": "", "ret": "42"}
    assert (await run(session, "x = 1"))["ret"] == ""
    assert (await run(session, "None"))["ret"] == ""
    assert (await run(session, ""))["error"] == ""


async def test_state_is_kept_and_not_shared(session: CodeSession, warm: ForkSandbox) -> None:
    await run(session, "import math\ntotal = 40\ndef add(n):\n    return total + n\nopen('a.txt', 'w').write('kept')")
    assert (await run(session, "add(2), math.floor(1.5), open('a.txt').read()"))["ret"] == "(42, 1, 'kept')"
    assert (await run(session, "__name__, __import__('sys').modules['__main__'].total"))["ret"] == "('__main__', 40)"
    other = CodeExecutionFamily(warm, LIMITS).open(CodeExecution())
    try:
        assert "NameError" in (await run(other, "total"))["error"]
        assert (await run(other, "import os; os.listdir('.')"))["ret"] == "[]"
    finally:
        await other.close()


async def test_errors(session: CodeSession) -> None:
    told = await run(session, "y = 5\n1 / 0")
    assert "ZeroDivisionError: division by zero" in told["error"]
    assert "1 / 0" in told["error"], "the line at fault"
    assert "runner.py" not in told["error"]
    assert (await run(session, "y"))["ret"] == "5", "what was done before the error stays"
    assert "SyntaxError" in (await run(session, "if"))["error"]
    assert (await run(session, "exit(3)"))["error"] == "SystemExit: 3"
    assert "EOFError" in (await run(session, "input()"))["error"]


async def test_libraries(session: CodeSession) -> None:
    told = await run(
        session,
        "import numpy as np, pandas as pd, sympy, scipy.optimize\n"
        "x = sympy.symbols('x')\n"
        "(int(np.arange(5).sum()), float(pd.DataFrame({'a': [1, 2, 3]}).describe().loc['mean', 'a']),"
        " str(sympy.integrate(x**2, x)), round(float(scipy.optimize.minimize(lambda v: (v[0] - 2)**2, [0]).x[0]), 3))",
    )
    assert (told["ret"], told["error"]) == ("(10, 2.0, 'x**3/3', 2.0)", "")


async def test_figures_are_saved(session: CodeSession) -> None:
    done = await call(session, "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.title('A title')\nplt.show()")
    (file,) = done.files
    assert (file.name, file.mime) == ("figure_1.png", "image/png")
    assert file.data.startswith(b"\x89PNG")
    assert json.loads(done.text)["output_files"] == {"figure_1.png": {"mime_type": "image/png", "size": len(file.data)}}
    done = await call(session, "plt.figure(); plt.bar([1, 2], [3, 4]); plt.savefig('mine.png')")
    assert [file.name for file in done.files] == ["mine.png"], "a figure that the code saved is not saved again"
    assert [file.name for file in (await call(session, "plt.figure().add_subplot()")).files] == ["figure_2.png"]


async def test_files(session: CodeSession) -> None:
    done = await call(
        session, "import os\nos.mkdir('d')\nopen('d/a.csv', 'w').write('a,b')\nopen('b.bin', 'wb').write(b'\\0')"
    )
    assert [(file.name, file.mime, file.data) for file in done.files] == [
        ("b.bin", "application/octet-stream", b"\0"),
        ("d/a.csv", "text/csv", b"a,b"),
    ]
    assert (await call(session, "1")).files == (), "unchanged"
    assert [file.name for file in (await call(session, "open('d/a.csv', 'a').write('c')")).files] == ["d/a.csv"]


async def test_files_are_bounded(session: CodeSession) -> None:
    done = await call(
        session, "for n in range(6): open(f'{n}.txt', 'w').write('a')\nopen('0.txt', 'w').write('a' * 300_000)"
    )
    assert [file.name for file in done.files] == ["1.txt", "2.txt", "3.txt", "4.txt"]
    assert "2 more files were not returned" in json.loads(done.text)["stderr"]


async def test_output_is_bounded(session: CodeSession) -> None:
    told = await run(session, "print('a' * 5000)\n'b' * 100_000")
    assert told["stdout"].startswith("a" * 1000 + "\n… (cut: 4001 more bytes)")
    assert len(told["ret"]) < 70_000
    assert (await run(session, "import os; os.write(1, b'\\xff\\xfe')"))["stdout"] == "��"


async def test_processes_threads_and_loops_work(session: CodeSession) -> None:
    told = await run(
        session,
        "import asyncio, multiprocessing, subprocess, sys, threading\n"
        "found = []\n"
        "thread = threading.Thread(target=lambda: found.append(1)); thread.start(); thread.join()\n"
        "async def two(): await asyncio.sleep(0); return 2\n"
        "found.append(asyncio.run(two()))\n"
        "def cube(n): return n ** 3\n"
        "with multiprocessing.Pool(2) as pool: found += pool.map(cube, [2, 3])\n"
        "found.append(subprocess.run([sys.executable, '-c', 'print(5)'], capture_output=True, text=True).stdout.strip())\n"
        "found",
    )
    assert (told["ret"], told["error"]) == ("[1, 2, 8, 27, '5']", "")


@pytest.mark.parametrize("arguments", ["", "[]", "{}", '{"code": 1}', '{"code": "1", "more": 1}', "print(1)"])
async def test_unfit_arguments(session: CodeSession, arguments: str) -> None:
    with pytest.raises(ToolFailed, match="The arguments must be"):
        await session.call("code_execution", arguments)


async def test_unfit_calls(session: CodeSession) -> None:
    with pytest.raises(ToolFailed, match="no function 'other'"):
        await session.call("other", '{"code": "1"}')
    with pytest.raises(ToolFailed, match="too long"):
        await call(session, "#" * LIMITS.code_bytes + "1")


async def test_calls_of_one_session_wait_for_each_other(session: CodeSession) -> None:
    await run(session, "order = []")
    await asyncio.gather(*(run(session, f"order.append({n}); order.append({n})") for n in range(4)))
    order = json.loads((await run(session, "order"))["ret"])
    assert order[::2] == order[1::2]
    assert sorted(order) == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_a_call_that_ends_the_interpreter_is_told_now_and_next_time() -> None:
    async with sandbox(QUICK) as made:
        session = CodeExecutionFamily(made, QUICK).open(CodeExecution())
        told = await run(session, "import time\nx = 1\nprint('begun')\nopen('f', 'w').write('a')\ntime.sleep(60)")
        assert told["stdout"] == "begun\n"
        assert told["error"] == (
            "The interpreter was ended: the code ran for more than 3 s. Its variables and files are lost."
        )
        assert list(told["output_files"]) == ["f"]
        told = await run(session, "x")
        assert "NameError" in told["error"]
        assert told["stderr"].startswith("[a new interpreter, without earlier variables and files: the code ran")
        assert (await run(session, "1"))["stderr"] == ""
        told = await run(session, "import os; os._exit(7)")
        assert "the code ended its process with exit code 7" in told["error"]
        await session.close()
        with pytest.raises(ToolFailed, match="closed"):
            await run(session, "1")


async def test_interpreters_at_a_time_are_bounded() -> None:
    limits = Limits(timeout_s=60, libraries=(), sessions_max=2)
    async with sandbox(limits) as made:
        first, second = await made.open(), await made.open()
        third = asyncio.create_task(made.open())
        await asyncio.sleep(0.1)
        assert not third.done()
        await first.close()
        opened = await third
        assert (await opened.run("1")).ret == "1"
        assert made.status().startswith("bubblewrap: ready, 2 of 2 interpreters in use")
        await opened.close()
        await second.close()
