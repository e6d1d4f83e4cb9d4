"""SQL from strangers: a query typed into a page runs in a process of its own, which is killed at its limits.

Inside DuckDB no limit holds: an interrupt is not heeded within one long function call (`len(range(1000000000))`, `levenshtein`
of long strings), strings grow past `memory_limit`, and deep JSON overruns the stack, which ends the process. So a child opens
the file as every reader does (`dataeff.records.store`), gives up what it does not need, and only then looks at the text:
no files (DuckDB's file system is off, and the process may open none), no settings, no extensions, one SELECT or EXPLAIN of
one; so much time, memory, rows and bytes. The kernel keeps time and memory. The answer comes back as Arrow through a pipe.

What a query still learns beside the rows: DuckDB's settings, and where the file lies.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow
import pyarrow.parquet

from dataeff import errors
from dataeff.errors import DataeffError, QueryError
from dataeff.records.store import Database

SECONDS = 7.0  # a writer waits for the query, and readers for the writer, 10 s at most (`Database.read`)
MEGABYTES = 2048  # `recipe_summary` of one study of 92 cells takes 600 to 1000
ROWS = 10_000
ANSWER_MEGABYTES = 16
AT_ONCE = 2

_OPENING_SECONDS = 30.0  # a writer may hold the file, an older file is migrated first
_SETTINGS = (
    "temp_directory = ''",
    *("enable_external_access = false", "disabled_filesystems = 'LocalFileSystem'", "python_enable_replacements = false"),
    *("autoinstall_known_extensions = false", "autoload_known_extensions = false", "allow_community_extensions = false"),
    *("allow_persistent_secrets = false", "max_temp_directory_size = '0KB'", f"memory_limit = '{MEGABYTES}MB'", "threads = 2"),
    "lock_configuration = true",
)
_ELSEWHERE = "ask for less, or ask `dataeff sql`, which has no limits"
_GAP = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_EXPLAIN = re.compile(rf"^{_GAP}explain\b{_GAP}(analyze\b{_GAP})?(\([^)]*\){_GAP})?", re.IGNORECASE | re.DOTALL)
_places = threading.BoundedSemaphore(AT_ONCE)


@dataclass(frozen=True)
class Answer:
    """The rows of a query as Arrow, why there are not all of them (None where there are), and how long it took (s)."""

    table: pyarrow.Table
    cut: str | None
    seconds: float

    def records(self, columns: Collection[str]) -> list[dict[str, Any]]:
        """Return these columns as plain values, decimals as floats. Raises `QueryError` for times beyond Python's."""
        table = self.table.select([name for name in self.table.column_names if name in columns])
        for i, field in enumerate(table.schema):
            if pyarrow.types.is_decimal(field.type):
                table = table.set_column(i, field.name, table.column(i).cast(pyarrow.float64()))
        try:
            return table.to_pylist()
        except (ValueError, OverflowError) as error:
            raise QueryError(f"{', '.join(table.column_names)}: {error}; leave such rows out (`where isfinite(...)`)") from error


def ask(path: Path, text: str, seconds: float = SECONDS) -> Answer:
    """Run one query of a stranger's on the database at `path`.

    Raises `QueryError` when it is refused, fails or is stopped at a limit, `DataeffError` when the file cannot be read;
    the database and this process are as before then.
    """
    if not _places.acquire(timeout=2 * SECONDS):
        raise QueryError(f"{AT_ONCE} other queries are running, as many as may at once; run this one again in {SECONDS:g} s")
    known = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    begin = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(Path(path).absolute()), str(seconds)],
            input=text.encode(errors="replace"),
            capture_output=True,
            cwd=Path(__file__).parents[2],  # where this very package is found
            env={**known, "HOME": os.devnull, "ARROW_DEFAULT_MEMORY_POOL": "system"},  # others reserve 1 GB at once
            timeout=_OPENING_SECONDS + seconds,
        )
    except subprocess.TimeoutExpired:
        raise QueryError(f"the query was stopped after {time.monotonic() - begin:.0f} s; {_ELSEWHERE}") from None
    finally:
        _places.release()
    if done.returncode == -signal.SIGALRM:
        raise QueryError(f"the query was stopped after {seconds:g} s, the limit here; {_ELSEWHERE}")
    head, _, body = done.stdout.partition(b"\n")
    if done.returncode < 0:
        how = signal.Signals(-done.returncode).name
        raise QueryError(f"the query broke DuckDB ({how}), in a process of its own: nothing else is harmed; ask otherwise")
    if done.returncode:
        raise QueryError(f"the query could not be run: {done.stderr.decode(errors='replace').strip().splitlines()[-1:]}")
    said = json.loads(head)
    if "error" in said:
        raise getattr(errors, said["error"])(said["message"])
    with pyarrow.ipc.open_stream(body) as stream:
        return Answer(stream.read_all(), said["cut"], time.monotonic() - begin)


def _main(path: str, seconds: float) -> None:
    """Answer the query on standard input: a line of JSON, then the rows as an Arrow stream."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # DuckDB's profiler, which a query can switch on, prints
    text = sys.stdin.buffer.read().decode()
    try:
        with Database(path).read() as connection:
            table, cut = _answer(connection, text, seconds)
    except (DataeffError, duckdb.Error, pyarrow.ArrowException, MemoryError) as error:
        answer.write(json.dumps({"error": type(error).__name__, "message": str(error)} if isinstance(error, DataeffError)
                     else {"error": "QueryError", "message": _told(error)}).encode() + b"\n")  # fmt: skip
    else:
        answer.write(json.dumps({"cut": cut}).encode() + b"\n")
        with pyarrow.ipc.new_stream(answer, table.schema) as stream:
            stream.write_table(table)
    answer.close()


def _told(error: Exception) -> str:
    if isinstance(error, (duckdb.OutOfMemoryException, MemoryError, pyarrow.ArrowMemoryError)):
        return f"the query takes more than {MEGABYTES} MB of memory, the limit here; {_ELSEWHERE}"
    if isinstance(error, duckdb.PermissionException):
        return f"the query was refused, as it may reach no files, settings or extensions: {error}"
    return f"the query failed: {error}"


def _answer(connection: duckdb.DuckDBPyConnection, text: str, seconds: float) -> tuple[pyarrow.Table, str | None]:
    connection.execute("SELECT 1").to_arrow_reader(1).read_all()  # loads what is loaded when first used
    signal.setitimer(signal.ITIMER_REAL, seconds)  # the kernel ends the process, whatever it is doing
    for setting in _SETTINGS:
        connection.execute(f"SET {setting}")
    _give_up()
    return _fetch(connection, text)


def _give_up() -> None:
    """Let this process open no file, write none, and take no more memory than a query may."""
    held = Path("/proc/self/statm")
    if held.exists():  # Linux; elsewhere DuckDB's own limit has to do, which long strings pass
        most = int(held.read_text().split()[0]) * resource.getpagesize() + (MEGABYTES + 512) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(what, (0, 0))


def _statements(connection: duckdb.DuckDBPyConnection, text: str) -> list[duckdb.Statement]:
    """Return what to execute, the last of which gives the rows. For behind closed doors: IMPORT reads as it is parsed."""
    found = connection.extract_statements(text)
    written = [statement for statement in found if statement.query or statement is found[-1]]  # a PIVOT first makes a type
    if len(written) != 1:
        raise QueryError(f"there are {len(written)} statements; give one SELECT")
    kind = written[0].type.name if hasattr(written[0].type, "name") else "unknown"
    inner = _EXPLAIN.sub("", text)
    if kind == "EXPLAIN" and [s.type.name for s in connection.extract_statements(inner)][-1:] == ["SELECT"]:
        return found
    if kind != "SELECT":
        raise QueryError(f"a statement of type {kind} is refused; the database is only read here: give one SELECT")
    return found


def _fetch(connection: duckdb.DuckDBPyConnection, text: str) -> tuple[pyarrow.Table, str | None]:
    """Return the first rows of the answer and why they are not all. The others are never made: rows come as they are taken."""
    for statement in _statements(connection, text):
        connection.execute(statement)
    reader = connection.to_arrow_reader(1000)
    taken, room, cut = [], ANSWER_MEGABYTES * 10**6, None
    for batch in reader:
        kept = batch.slice(0, ROWS - sum(b.num_rows for b in taken))
        if kept.num_rows < batch.num_rows:
            cut = f"the first {ROWS:,} rows; there are more"
        while kept.nbytes > room:
            kept = kept.slice(0, kept.num_rows // 2)
            cut = f"as many rows as fit into {ANSWER_MEGABYTES} MB; there are more"
        taken.append(kept)
        room -= kept.nbytes
        if cut:
            break
    return _presentable(connection, pyarrow.Table.from_batches(taken, reader.schema)), cut


def _presentable(connection: duckdb.DuckDBPyConnection, table: pyarrow.Table) -> pyarrow.Table:
    """Return the table with names that differ, and as text what Parquet has no type for, such as intervals and unions."""
    columns: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        while name in columns:
            name += "_1"
        try:
            pyarrow.parquet.write_table(pyarrow.table({"it": column.slice(0, 0)}), pyarrow.BufferOutputStream())
        except pyarrow.ArrowException:
            column = connection.from_arrow(pyarrow.table({"it": column})).project("it::VARCHAR").to_arrow_table().column(0)
        columns[name] = column
    return pyarrow.table(columns)


if __name__ == "__main__":
    _main(sys.argv[1], float(sys.argv[2]))
