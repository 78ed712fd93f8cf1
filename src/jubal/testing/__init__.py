"""For tests of Jubal and of what is built on it: engines that follow a script, and the promises as ready-made checks."""

from jubal.testing.engines import Hang, ScriptedEngine, check_engine, one_turn

__all__ = ["Hang", "ScriptedEngine", "check_engine", "one_turn"]
