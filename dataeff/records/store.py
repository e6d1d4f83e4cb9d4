"""The one way to the DuckDB file: short write transactions, short reads, one version of the schema.

DuckDB lets one process write or many read a file, never both. So a writer takes `<file>.lock`, opens, writes one
transaction and closes; a reader takes the lock for the moment of opening alone, so that a crowd of readers cannot
starve the writer, and keeps the file no longer than it must. What another program holds is waited for, up to a limit.

The file is an index of the files next to it and never migrated: one of another version of dataeff is refused as it is, and made
again under another name, which `replace_with` puts in its place. What rows mean is for `dataeff.records.ingest` to know. Only
`session` and the making of a schema import sqlmodel, which is slow to load.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
from filelock import FileLock, Timeout

from dataeff.errors import DatabaseBusyError, DatabaseError, NotFoundError, SchemaError
from dataeff.share import shared_folder

if TYPE_CHECKING:
    from sqlmodel import Session

POLL_SECONDS = 0.005
LOCK_MESSAGES = ("Could not set lock", "different configuration than existing connections")
WRITE_ERRORS = (duckdb.OperationalError, duckdb.InternalError, duckdb.FatalException)


class Database:
    """A DuckDB file of runs. The file is created by the first write; making this object touches nothing."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @contextmanager
    def write(self, timeout: float = 30.0) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a connection in one transaction: committed when the block ends, rolled back when it raises.

        The first write creates the file and its schema. `timeout` in seconds. Raises `DatabaseBusyError` when others hold
        the file for longer, `SchemaError` when another version of dataeff made it, `DatabaseError` when it cannot be
        written or is not a dataeff database; nothing is changed then.
        """
        deadline = time.monotonic() + timeout
        with self._lock(timeout):
            try:
                with self._open(deadline, read_only=False) as connection:  # closing it without a commit rolls back
                    connection.begin()
                    if not _has_schema(connection, self.path):
                        from dataeff.records.tables import statements  # slow to import

                        connection.execute(f"{statements()};\n{views()}")
                        connection.execute("INSERT INTO schema VALUES ($1, now())", [schema_version()])
                    yield connection
                    connection.commit()
            except WRITE_ERRORS as error:
                raise self._unwritable(error) from error

    @contextmanager
    def read(self, timeout: float = 10.0) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a read-only connection. Keep it for no longer than a query takes: writers wait for it.

        Raises `NotFoundError` when there is no such file or nothing in it, `DatabaseBusyError` when a writer holds it for
        longer than `timeout` seconds, `SchemaError` when another version of dataeff made it, `DatabaseError` when it is
        damaged or not a dataeff database.
        """
        remedy = "train something into it (`dataeff run quickstart`), or name another file with --database"
        if not self.path.exists():
            raise NotFoundError(f"there is no database {self.path}; {remedy}")
        deadline = time.monotonic() + timeout
        with ExitStack() as stack:
            with self._lock(timeout, reading=True):
                connection = stack.enter_context(self._open(deadline, read_only=True))
            if not _has_schema(connection, self.path):
                raise NotFoundError(f"{self.path} holds no runs yet; {remedy}")
            yield connection

    def require_usable(self) -> None:
        """Raise as `read` does, but for a file that does not exist or is empty, which is fine."""
        with suppress(NotFoundError), self.read():
            return

    def replace_with(self, other: Path, keep_old_as: Path | None = None, timeout: float = 30.0) -> None:
        """Put the closed database file `other`, of the same file system, in this one's place: readers open the old file or the
        new one, never half. A copy of the old file stays as `keep_old_as`, in place of a file of that name.

        Raises `DatabaseBusyError` when others hold the old file for longer than `timeout` seconds, `DatabaseError` when files
        cannot be written.
        """
        deadline = time.monotonic() + timeout
        with self._lock(timeout):
            try:
                if self.path.exists():
                    with suppress(duckdb.Error):  # a damaged file is kept as it is
                        self._connect(deadline, read_only=False).close()  # nobody holds it, and DuckDB works its log in
                log = Path(f"{self.path}.wal")  # a damaged file still has one, which DuckDB would apply to the next
                for file, copy in ((self.path, keep_old_as), (log, Path(f"{keep_old_as}.wal"))):
                    if keep_old_as and file.exists():
                        shutil.copyfile(file, copy)
                log.unlink(missing_ok=True)
                os.replace(other, self.path)
                Database(other)._lock_path.unlink(missing_ok=True)
            except OSError as error:
                raise self._unwritable(error) from error

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Yield a read-only SQLModel session over the classes of `dataeff.records.tables`. Raises as `read` does."""
        from duckdb_sqlalchemy import ConnectionWrapper
        from sqlalchemy.pool import StaticPool
        from sqlmodel import Session, create_engine

        with self.read() as connection:
            engine = create_engine("duckdb://", creator=lambda: ConnectionWrapper(connection), poolclass=StaticPool)
            with Session(engine) as session:
                yield session

    @property
    def _lock_path(self) -> Path:
        return self.path.with_name(self.path.name + ".lock")

    @contextmanager
    def _lock(self, timeout: float, reading: bool = False) -> Iterator[None]:
        """Hold the writers' lock. A reader does without it where the folder cannot be written."""
        lock = FileLock(self._lock_path, timeout=timeout, poll_interval=POLL_SECONDS)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise self._busy(timeout, "another writer") from None
        except OSError as error:
            if not reading:
                raise self._unwritable(error) from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _open(self, deadline: float, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            connection = self._connect(deadline, read_only)
        except duckdb.Error as error:
            remedy = "it was left as it is. If it is damaged, `dataeff rebuild` rebuilds it from the files next to it"
            raise DatabaseError(f"{self.path} cannot be opened: {error}; {remedy}") from error
        with connection:
            connection.execute("SET TimeZone = 'UTC'")
            yield connection

    def _connect(self, deadline: float, read_only: bool) -> duckdb.DuckDBPyConnection:
        begin = time.monotonic()
        while True:
            try:
                return duckdb.connect(self.path, read_only=read_only)
            except duckdb.Error as error:
                if not any(message in str(error) for message in LOCK_MESSAGES):
                    raise
                if time.monotonic() >= deadline:
                    holder = re.search(r"held in (.*?) \(PID (\d+)\)", str(error))
                    who = f"process {holder[2]} ({holder[1]})" if holder else "another connection of this process"
                    raise self._busy(time.monotonic() - begin, who) from error
            time.sleep(random.uniform(0.5, 2) * POLL_SECONDS)

    def _unwritable(self, error: Exception) -> DatabaseError:
        remedy = "check that the folder can be written and the disk has space, then run the same command again"
        return DatabaseError(f"{self.path} could not be written, and what this write held is not in it: {error}; {remedy}")

    def _busy(self, seconds: float, who: str) -> DatabaseBusyError:
        remedy = "close the shell, notebook or study that has it open, or wait"
        return DatabaseBusyError(f"{self.path} was held by {who} for {seconds:.1f} s; {remedy}")


@cache
def views() -> str:
    return "\n".join(file.read_text(encoding="utf-8") for file in sorted((shared_folder("db") / "views").glob("*.sql")))


@cache
def schema_version() -> str:
    """Return the hash of what declares the tables and makes the views, without importing it."""
    declared = Path(__file__).with_name("tables.py").read_text(encoding="utf-8")
    return hashlib.sha256((declared + views()).encode()).hexdigest()[:16]


def _has_schema(connection: duckdb.DuckDBPyConnection, path: Path) -> bool:
    """Return whether the file has the schema of this version; False for an empty file. Raises for any other."""
    tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables() WHERE NOT temporary").fetchall()}
    if not tables:
        return False
    if "run" not in tables:
        lacks = f"it has tables ({', '.join(sorted(tables)[:5])}) and no schema of dataeff; name another file with --database"
        raise DatabaseError(f"{path} is a DuckDB file but not a dataeff database: {lacks}")
    if "schema" not in tables or connection.execute("SELECT version FROM schema").fetchall() != [(schema_version(),)]:
        remedy = "it was left as it is; `dataeff rebuild` rebuilds it from the files next to it"
        raise SchemaError(f"{path} was written by another version of dataeff: {remedy}")
    return True
