"""Run a program's tests, in a sandbox: solution.py and tests.json lie beside this file.

Exit status 0 if all pass; else the first failure on stdout, and 1. It uses the standard library
alone, as it runs where nothing else is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

# What programs of contests take for granted.
_IMPORTS = """\
import bisect, collections, copy, datetime, functools, heapq, itertools, json, math, operator
import random, re, statistics, string, sys, time
from bisect import *
from collections import *
from copy import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
sys.setrecursionlimit(50000)
"""
# Reads the arguments as lines of JSON, and prints the result as JSON.
_CALL = """
if __name__ == "__main__":
    _arguments = [json.loads(line) for line in sys.stdin.read().split("\\n") if line.strip()]
    _output, sys.stdout = sys.stdout, sys.stderr
    _function = getattr(Solution(), {name!r}) if "Solution" in globals() else {name}
    _output.write(json.dumps(_function(*_arguments)))
"""


def main() -> int:
    """Run the tests -> the exit status."""
    work = json.loads(Path("tests.json").read_text(encoding="utf-8"))
    program = _IMPORTS + Path("solution.py").read_text(encoding="utf-8")
    Path("main.py").write_text(program, encoding="utf-8")
    if work["function"]:
        call = program + _CALL.format(name=work["function"])
        Path("call.py").write_text(call, encoding="utf-8")
    for number, test in enumerate(work["tests"], 1):
        problem = _run(test, work["seconds"])
        if problem:
            print(f"test {number} of {len(work['tests'])}: {problem}")  # noqa: T201
            return 1
    return 0


def _run(test: dict[str, str], seconds: float) -> str:
    """Return what is wrong with the program's output; "" for nothing."""
    called = test["testtype"] == "functional"
    try:
        done = subprocess.run(
            [sys.executable, "call.py" if called else "main.py"],
            input=test["input"],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {seconds:g} s"
    if done.returncode:
        return f"it failed: {done.stderr[-500:]}"
    same = _same_value if called else _same_text
    if same(done.stdout, test["output"]):
        return ""
    return f"{done.stdout[:200]!r} instead of {test['output'][:200]!r}"


def _same_value(given: str, expected: str) -> bool:
    try:
        return bool(json.loads(given) == json.loads(expected))
    except ValueError:
        return False


def _same_text(given: str, expected: str) -> bool:
    """Whether lines are the same, white space at their ends and the spelling of numbers aside."""
    lines, wanted = (text.strip().split("\n") for text in (given, expected))
    return len(lines) == len(wanted) and all(map(_same_line, lines, wanted))


def _same_line(given: str, expected: str) -> bool:
    given, expected = given.strip(), expected.strip()
    if given == expected:
        return True
    numbers = [_numbers(line) for line in (given, expected)]
    return numbers[0] is not None and numbers[0] == numbers[1]


def _numbers(line: str) -> list[Any] | None:
    try:
        return [Decimal(word) for word in line.split()]
    except InvalidOperation:
        return None


if __name__ == "__main__":
    sys.exit(main())
