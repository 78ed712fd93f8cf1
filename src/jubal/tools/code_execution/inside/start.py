"""Runs one module of this folder under its real name, without the rest of Jubal, which is not there inside the sandbox.

python -I -S -u start.py launch|zygote JSON
"""

import importlib
import os
import sys
import types

for name in ("jubal", "jubal.tools", "jubal.tools.code_execution"):
    package = types.ModuleType(name)
    package.__path__ = []
    sys.modules[name] = package
package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]

importlib.import_module(f"jubal.tools.code_execution.inside.{sys.argv[1]}").main(sys.argv[2])
