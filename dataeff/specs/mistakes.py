"""Mistakes in a TOML file, as messages: which line, which key, what the rule is and what would be valid."""

import difflib
import re
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dataeff.errors import nearest

_TAG = re.compile(r"function-before\[|literal\[|dict\[|\[key\]")  # what pydantic adds to a place


def rule(problem: ErrorDetails, model: type[BaseModel]) -> str:
    """Return the rule that is broken, and the remedy, of one thing that pydantic says of a `model`."""
    if problem["type"] == "extra_forbidden":
        return f"unknown key; {nearest(problem['loc'][-1], model.model_fields)}"
    if problem["type"] == "missing":
        return "this key is missing; add it"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    return message + ", a whole number" * problem["type"].startswith("int_")


def explain(error: ValidationError, text: str, root: type[BaseModel], tables: Mapping[str, type[BaseModel]]) -> list[str]:
    """Return `LINE: KEY = VALUE: rule; remedy` for each problem of a TOML text that declares a `root`.

    `tables` are the models of its tables, by the last name of the table.
    """
    problems = error.errors()
    misspelt = {str(p["loc"][-1]) for p in problems if p["type"] == "extra_forbidden"}
    lines = []
    for problem in problems:
        where = [str(part) for part in problem["loc"] if not _TAG.match(str(part))]
        missing = problem["type"] == "missing"
        if missing and difflib.get_close_matches(where[-1], misspelt, n=1):
            continue  # reported already, as the unknown key it was misspelt as
        message = rule(problem, [root, *(tables[part] for part in where[:-1] if part in tables)][-1])
        value = "" if missing or isinstance(problem["input"], dict) else f" = {problem['input']!r}"
        subject = re.match(r"'?([\w.]+)", message)  # a rule about a table begins with the key that it is about
        line = line_of(text, [*where, *(subject[1].split(".") if subject else ())])
        lines.append(f"{line}: {'.'.join(where)}{value}: {message}" if where else f"{line}: {message}")
    return lines


def line_of(text: str, where: list[str]) -> int:
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
        if len(path) > depth and path == where[: len(path)]:
            best, depth = number, len(path)
    return best
