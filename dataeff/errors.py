"""Every error the library raises on purpose, so that a caller can name what it catches.

An error's message gives the value, the rule and the remedy in one or two lines. The library only raises;
the command line turns `DataeffError` into a message and the exit code the class carries.
"""

import difflib
from collections.abc import Iterable


class DataeffError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what the command line ends with."""

    exit_code = 1


class InputError(DataeffError):
    """What the user gave cannot be used; nothing was changed."""

    exit_code = 2


class StudyError(InputError):
    """A study file or `StudySpec` breaks a rule."""


class CorpusError(InputError):
    """A corpus or tokenizer cannot be found, read, or is too small for what is asked."""


class UnstableValueError(InputError):
    """A value has no stable bytes, so it cannot enter a run id."""


class OffGridError(InputError, ValueError):
    """A point is not on the grid."""


class NotFoundError(InputError):
    """A run, study, view or column of that name is not in the database."""


class QueryError(InputError):
    """A SQL query was refused or failed."""


class DatabaseError(DataeffError):
    """The database file cannot be opened, is damaged, or has a schema this version cannot use."""


class DatabaseBusyError(DatabaseError):
    """Another process held the database file for longer than the time allowed."""


class SchemaError(DatabaseError):
    """Another version of dataeff made the database file; nothing was changed, and the file can be made anew."""


class StudyRunningError(DataeffError):
    """Another process is running the same study."""


class TrainingError(DataeffError):
    """An attempt at a job failed for a reason other than divergence."""


class OutOfMemory(TrainingError):
    """A job does not fit on the device, not even one sequence at a time."""


class Preempted(TrainingError):
    """A job was asked to stop; what it has done so far is in its checkpoint."""


def nearest(name: object, valid: Iterable[object]) -> str:
    """Return the valid names, after the one closest to `name` where one is close."""
    names = [str(v) for v in valid]
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean '{close[0]}'? Valid: {', '.join(names)}" if close else f"valid: {', '.join(names)}"
