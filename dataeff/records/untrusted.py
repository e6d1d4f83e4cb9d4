"""Untrusted SQL, run in a limited process that is killed at its limits.

Limits do not hold inside DuckDB: one long function call ignores an interrupt (`len(range(1000000000))`), strings grow past
`memory_limit`, and deep JSON overruns the stack. So a child process opens the file read-only (`dataeff.records.store`), drops
its privileges, and only then parses the text: no files, settings or extensions; one SELECT or EXPLAIN of one; bounded time,
memory, rows and bytes. Rows come back as Arrow through a pipe. A query can still read DuckDB's settings and the file's path.
"""

import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow

from dataeff import errors
from dataeff.errors import DataeffError, QueryError
from dataeff.records.store import Database

SECONDS = 7.0  # a writer waits for the query, and readers for the writer, 10 s at most (`Database.read`)
MEGABYTES = 2048  # `recipe_summary` of one study of 92 cells takes 600 to 1000
ROWS = 10_000
RESULT_MEGABYTES = 16
AT_ONCE = 2

_OPENING_SECONDS = 30.0  # a writer may hold the file
_SETTINGS = f"""SET temp_directory = ''; SET max_temp_directory_size = '0KB'; SET memory_limit = '{MEGABYTES}MB'; SET threads = 2;
SET enable_external_access = false; SET disabled_filesystems = 'LocalFileSystem'; SET python_enable_replacements = false;
SET autoinstall_known_extensions = false; SET autoload_known_extensions = false; SET allow_community_extensions = false;
SET allow_persistent_secrets = false; SET lock_configuration = true"""
_REMEDY = "ask for less, or use `dataeff sql`, which is not limited in time or rows"
_GAP = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_EXPLAIN = re.compile(rf"^{_GAP}explain\b{_GAP}(analyze\b{_GAP})?(\([^)]*\){_GAP})?", re.IGNORECASE | re.DOTALL)
_places = threading.BoundedSemaphore(AT_ONCE)


@dataclass(frozen=True)
class QueryResult:
    """The rows of a query as Arrow, why there are not all of them (None where there are), and how long it took (s)."""

    table: pyarrow.Table
    cut: str | None
    seconds: float


def ask(path: Path, text: str, seconds: float = SECONDS) -> QueryResult:
    """Run one untrusted query on the database at `path`.

    Raises `QueryError` when it is refused, fails or is stopped at a limit, `DataeffError` when the file cannot be read.
    """
    if not _places.acquire(timeout=2 * SECONDS):
        raise QueryError(f"{AT_ONCE} other queries are running, as many as may at once; run this one again in {SECONDS:g} s")
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    environment |= {"HOME": os.devnull, "PYTHONIOENCODING": "utf-8", "ARROW_DEFAULT_MEMORY_POOL": "system"}  # others reserve 1 GB
    command = [sys.executable, "-m", __name__, str(Path(path).absolute()), str(seconds)]
    here = Path(__file__).parents[2]  # where this very package is found
    given, limit, begin = text.encode(errors="replace"), _OPENING_SECONDS + seconds, time.monotonic()
    try:
        child = subprocess.run(command, input=given, capture_output=True, cwd=here, env=environment, timeout=limit)
    except subprocess.TimeoutExpired:
        raise QueryError(f"the query was stopped after {time.monotonic() - begin:.0f} s; {_REMEDY}") from None
    finally:
        _places.release()
    if child.returncode:
        raise _error(child.returncode, child.stderr.decode(errors="replace").strip(), seconds)
    with pyarrow.ipc.open_stream(child.stdout) as stream:
        table = stream.read_all()
    return QueryResult(table, table.schema.metadata[b"cut"].decode() or None, time.monotonic() - begin)


def _error(status: int, message: str, seconds: float) -> DataeffError:
    """Return the error of a child that ended with this exit status and message, `Class: text` where it raised one itself."""
    if status == -signal.SIGALRM:
        return QueryError(f"the query was stopped after {seconds:g} s, the limit here; {_REMEDY}")
    if status < 0:
        return QueryError(f"DuckDB crashed on this query ({signal.Signals(-status).name}); nothing else is affected: rewrite it")
    name, _, text = message.partition(": ")
    return getattr(errors, name)(text) if hasattr(errors, name) else QueryError(f"the query could not be run: {message[-300:]}")


def _main(path: str, seconds: float) -> None:
    """Run the query on standard input and write the rows as an Arrow stream, or end with an error's class and message."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # DuckDB's profiler, which a query can switch on, prints
    text = sys.stdin.buffer.read().decode()
    try:
        with Database(path).read() as connection:
            _drop_privileges(connection, seconds)
            table = _fetch(connection, text)
    except DataeffError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except (duckdb.OutOfMemoryException, MemoryError, pyarrow.ArrowMemoryError):
        sys.exit(f"QueryError: the query takes more than {MEGABYTES} MB of memory, the limit here; {_REMEDY}")
    except duckdb.PermissionException as error:
        sys.exit(f"QueryError: the query was refused, as it may reach no files, settings or extensions: {error}")
    except (duckdb.Error, pyarrow.ArrowException) as error:
        sys.exit(f"QueryError: the query failed: {error}")
    with output, pyarrow.ipc.new_stream(output, table.schema) as stream:
        stream.write_table(table)


def _drop_privileges(connection: duckdb.DuckDBPyConnection, seconds: float) -> None:
    """Let this process live for so long, open and write no file, and take no more memory than a query may."""
    connection.execute("SELECT 1").to_arrow_reader(1).read_all()  # loads what is loaded when first used
    signal.setitimer(signal.ITIMER_REAL, seconds)  # the kernel ends the process, whatever it is doing
    connection.execute(_SETTINGS)
    memory = Path("/proc/self/statm")
    if memory.exists():  # Linux; elsewhere DuckDB's own limit has to do, which long strings pass
        most = int(memory.read_text().split()[0]) * resource.getpagesize() + (MEGABYTES + 512) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))


def _fetch(connection: duckdb.DuckDBPyConnection, text: str) -> pyarrow.Table:
    """Return the first rows of one SELECT, and as metadata why they are not all; rows beyond them are never made.

    Call it without privileges: IMPORT reads files as it is parsed.
    """
    *before, last = connection.extract_statements(_EXPLAIN.sub("", text)) or [None]
    if last is None or last.type != duckdb.StatementType.SELECT or any(statement.query for statement in before):
        raise QueryError("the database is only read here: give one SELECT, or EXPLAIN and one SELECT")
    for statement in connection.extract_statements(text):  # a PIVOT is two: the first, which has no text, makes a type
        connection.execute(statement)
    reader = connection.to_arrow_reader(1000)
    batches, rows, room, cut = [], ROWS, RESULT_MEGABYTES * 10**6, ""
    for batch in reader:
        part = batch.slice(0, rows)
        if part.num_rows < batch.num_rows:
            cut = f"the first {ROWS:,} rows; there are more"
        while part.nbytes > room:
            part = part.slice(0, part.num_rows // 2)
            cut = f"as many rows as fit into {RESULT_MEGABYTES} MB; there are more"
        batches.append(part)
        rows, room = rows - part.num_rows, room - part.nbytes
        if cut:
            break
    return _presentable(connection, pyarrow.Table.from_batches(batches, reader.schema)).replace_schema_metadata({"cut": cut})


def _presentable(connection: duckdb.DuckDBPyConnection, table: pyarrow.Table) -> pyarrow.Table:
    """Return the table with names that differ, and as text what Parquet has no type for."""
    columns: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        while name in columns:
            name += "_1"
        if re.search("month_day_nano_interval|sparse_union<", str(column.type)):
            column = connection.from_arrow(pyarrow.table({"it": column})).project("it::VARCHAR").to_arrow_table().column(0)
        columns[name] = column
    return pyarrow.table(columns)


if __name__ == "__main__":
    _main(sys.argv[1], float(sys.argv[2]))
