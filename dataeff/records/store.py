"""The one way to the DuckDB file: short write transactions, short reads, migrations and views.

DuckDB lets one process write or many read a file, never both. So a writer takes `<file>.lock`, opens, writes one
transaction and closes; a reader takes the lock for the moment of opening alone, so that a crowd of readers cannot
starve the writer, and keeps the file no longer than it must. What another program holds is waited for, up to a limit.

What the rows mean is for `dataeff.records.ingest` to know. Only `session` imports sqlmodel, which is slow to load.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
from filelock import FileLock, Timeout

from dataeff.errors import DatabaseBusyError, DatabaseError, DataeffError, NotFoundError
from dataeff.share import shared_folder

if TYPE_CHECKING:
    from sqlmodel import Session

POLL_SECONDS = 0.005
_HELD = ("Could not set lock", "different configuration than existing connections")
_LOST = (
    duckdb.IOException,
    duckdb.TransactionException,
    duckdb.FatalException,
    duckdb.OutOfMemoryException,
    duckdb.InternalException,
)


class Database:
    """A DuckDB file of runs. The file is created by the first write; making this object touches nothing."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @contextmanager
    def write(self, timeout: float = 30.0) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a connection in one transaction: committed when the block ends, rolled back when it raises.

        The first write creates the file; the first by a newer version of dataeff migrates it. `timeout` in seconds.
        Raises `DatabaseBusyError` when others hold the file for longer, `DatabaseError` when it cannot be written, is
        not a dataeff database, or has a newer schema; nothing is changed then.
        """
        deadline = time.monotonic() + timeout
        lock = FileLock(self._lock_path, timeout=timeout, poll_interval=POLL_SECONDS)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise self._busy(timeout, "another writer") from None
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            with self._open(deadline, read_only=False) as connection:
                _prepare(connection, self.path)
                connection.execute("BEGIN")
                try:
                    yield connection
                except BaseException:
                    _roll_back(connection)
                    raise
                connection.execute("COMMIT")
        except _LOST as error:
            raise self._unwritable(error) from error
        finally:
            lock.release()

    @contextmanager
    def read(self, timeout: float = 10.0) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a read-only connection. Keep it for no longer than a query takes: writers wait for it.

        Raises `NotFoundError` when there is no such file, `DatabaseBusyError` when a writer holds it for longer than
        `timeout` seconds, `DatabaseError` when it is damaged, not a dataeff database, or of a newer schema.
        """
        if not self.path.exists():
            raise NotFoundError(
                f"there is no database {self.path}; train something into it (`dataeff run quickstart`), "
                "or name another file with --database"
            )
        deadline = time.monotonic() + timeout
        with ExitStack() as stack:
            connection = stack.enter_context(self._open_to_read(deadline))
            if not _is_current(connection, self.path):
                stack.close()
                try:
                    with self.write(timeout):  # brings schema and views up to date
                        pass
                except DatabaseBusyError:
                    raise
                except DatabaseError as error:
                    raise DatabaseError(f"{self.path} was written by another version of dataeff; {error}") from error
                connection = stack.enter_context(self._open_to_read(deadline))
            yield connection

    @contextmanager
    def _open_to_read(self, deadline: float) -> Iterator[duckdb.DuckDBPyConnection]:
        timeout = max(0.0, deadline - time.monotonic())
        try:
            with ExitStack() as stack:
                with self._moment(timeout):
                    connection = stack.enter_context(self._open(deadline, read_only=True))
                yield connection
        except Timeout:
            raise self._busy(timeout, "a writer") from None

    def require_usable(self) -> None:
        """Raise `DatabaseError` when the file is damaged, not a dataeff database, or of a newer schema; none or empty is fine."""
        try:
            with self.read():
                return
        except NotFoundError:
            return

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
    def _moment(self, timeout: float) -> Iterator[None]:
        """Hold the writers' lock while a reader opens; without it where the folder cannot be written."""
        lock = FileLock(self._lock_path, timeout=timeout, poll_interval=POLL_SECONDS)
        try:
            lock.acquire()
        except OSError as error:
            if isinstance(error, Timeout):
                raise
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _open(self, deadline: float, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        connection = self._connect(deadline, read_only)
        try:
            connection.execute("SET TimeZone = 'UTC'")
            yield connection
        finally:
            connection.close()

    def _connect(self, deadline: float, read_only: bool) -> duckdb.DuckDBPyConnection:
        begin = time.monotonic()
        while True:
            try:
                return duckdb.connect(self.path, read_only=read_only)
            except duckdb.Error as error:
                if not any(held in str(error) for held in _HELD):
                    raise DatabaseError(
                        f"{self.path} cannot be opened: {error}; it was left as it is. If it is damaged, move it away: the "
                        "run folders beside it hold every result, and the same study run again records them anew"
                    ) from error
                if time.monotonic() >= deadline:
                    holder = re.search(r"held in (.*?) \(PID (\d+)\)", str(error))
                    who = f"process {holder[2]} ({holder[1]})" if holder else "another connection of this process"
                    raise self._busy(time.monotonic() - begin, who) from error
            time.sleep(random.uniform(0.5, 2) * POLL_SECONDS)

    def _unwritable(self, error: Exception) -> DatabaseError:
        return DatabaseError(
            f"{self.path} could not be written, and what this write held is not in it: {error}; check that the folder can be "
            "written and the disk has space, then run the same command again"
        )

    def _busy(self, seconds: float, who: str) -> DatabaseBusyError:
        return DatabaseBusyError(
            f"{self.path} was held by {who} for {seconds:.1f} s; close the shell, notebook or study that has it open, or wait"
        )


def database_folder() -> Path:
    """Return the folder of `migrations/` and `views/`. Raises `DatabaseError` where the installation lacks it."""
    try:
        return shared_folder("db")
    except DataeffError as error:
        raise DatabaseError(str(error)) from error


@cache
def migrations() -> list[tuple[int, str, str]]:
    """Return (version, name, SQL) of every migration, in order."""
    files = sorted((database_folder() / "migrations").glob("*.sql"))
    return [(int(file.stem.split("_")[0]), file.stem, file.read_text(encoding="utf-8")) for file in files]


def views() -> str:
    """Return the SQL that creates every view and macro."""
    return "\n".join(file.read_text(encoding="utf-8") for file in sorted((database_folder() / "views").glob("*.sql")))


def _roll_back(connection: duckdb.DuckDBPyConnection) -> None:
    try:
        connection.execute("ROLLBACK")
    except duckdb.Error:
        pass  # no transaction is left after an error that ended it, and the first error is the one to tell


def _version(connection: duckdb.DuckDBPyConnection, path: Path) -> int:
    """Return the schema's version, 0 for an empty file. Raises `DatabaseError` for tables that are not dataeff's."""
    tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables() WHERE NOT temporary").fetchall()}
    if "schema_migration" in tables:
        return connection.execute("SELECT coalesce(max(version), 0) FROM schema_migration").fetchone()[0]
    if tables:
        raise DatabaseError(
            f"{path} is a DuckDB file but not a dataeff database: it has tables ({', '.join(sorted(tables)[:5])}) and no "
            "schema_migration; name another file with --database"
        )
    return 0


def _check_version(connection: duckdb.DuckDBPyConnection, path: Path) -> int:
    found, known = _version(connection, path), migrations()[-1][0]
    if found > known:
        raise DatabaseError(
            f"{path} has schema version {found}, this dataeff knows up to {known}; install the newer dataeff that wrote it"
        )
    return found


def _is_current(connection: duckdb.DuckDBPyConnection, path: Path) -> bool:
    """Whether schema and views are those of this version. Raises `NotFoundError` for a file that has neither yet."""
    found = _check_version(connection, path)
    if found == 0:
        raise NotFoundError(f"{path} holds no runs yet; train something into it (`dataeff run quickstart`)")
    return found == migrations()[-1][0] and connection.execute("SELECT hash FROM schema_views").fetchall() == [(_views_hash(),)]


@cache
def _views_hash() -> str:
    return hashlib.sha256(views().encode()).hexdigest()


def _prepare(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Bring schema and views up to date, each migration in its own transaction."""
    found = _check_version(connection, path)
    for version, name, statements in migrations():
        if version > found:
            try:
                _in_transaction(connection, statements, "INSERT INTO schema_migration VALUES ($1, $2, now())", [version, name])
                connection.execute("CHECKPOINT")
            except duckdb.Error as error:
                raise DatabaseError(f"{path} cannot be brought to schema {version} and stays as it is: {error}") from error
    if not _is_current(connection, path):
        statements = f"{views()};\nDELETE FROM schema_views"
        _in_transaction(connection, statements, "INSERT INTO schema_views VALUES ($1, now())", [_views_hash()])


def _in_transaction(connection: duckdb.DuckDBPyConnection, statements: str, last: str, parameters: list[object]) -> None:
    connection.execute("BEGIN")
    try:
        connection.execute(statements)
        connection.execute(last, parameters)
    except BaseException:
        _roll_back(connection)
        raise
    connection.execute("COMMIT")
