"""Mistakes in a TOML file, told as a person would: which line, which key, what the rule is and what would be valid."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from dataeff.errors import nearest

_UNION_TAG = re.compile(r"function-before\[|literal\[|dict\[")


def explain(error: ValidationError, text: str, root: type[BaseModel], tables: Mapping[str, type[BaseModel]]) -> list[str]:
    """Return `LINE: KEY = VALUE: rule; remedy` for each thing pydantic found in a TOML text that declares a `root`.

    `tables` are the models of its tables, by the last name of the table.
    """
    problems = error.errors()
    misspelt = {str(p["loc"][-1]) for p in problems if p["type"] == "extra_forbidden"}
    lines = []
    for problem in problems:
        where = [part for part in problem["loc"] if not _UNION_TAG.match(str(part))]
        key = ".".join(str(part) for part in where)
        message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
        if problem["type"] == "extra_forbidden":
            model = [root, *(tables[str(part)] for part in where[:-1] if str(part) in tables)][-1]
            message = f"unknown key; {nearest(where[-1], model.model_fields)}"
        elif problem["type"] == "missing":
            if difflib.get_close_matches(str(where[-1]), misspelt, n=1):
                continue  # told already, as the unknown key it was misspelt as
            message = "this key is missing; add it"
        shown = problem["input"]
        value = f" = {shown!r}" if where and problem["type"] != "missing" and not isinstance(shown, dict) else ""
        line = line_of(text, [*where, *_named(message)])
        lines.append(f"{line}: {key}{value}: {message}" if key else f"{line}: {message}")
    return lines


def _named(message: str) -> list[str]:
    """The key within the table that a rule is about: its message opens with it."""
    first = re.match(r"(?:axis )?'?([\w.]+)", message)
    return first.group(1).split(".") if first else []


def line_of(text: str, where: list[Any]) -> int:
    """Return the 1-based line of the deepest key of `where` that the text has; line 1 when it has none."""
    table: list[str] = []
    best, depth = 1, 0
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            table = [part.strip(" '\"") for part in header.group(1).split(".")]
            path = table
        elif key := re.match(r"\s*([\w.'\"-]+)\s*=", line):
            path = [*table, *(part.strip("'\"") for part in key.group(1).split("."))]
        else:
            continue
        if len(path) > depth and path == [str(part) for part in where[: len(path)]]:
            best, depth = number, len(path)
    return best
