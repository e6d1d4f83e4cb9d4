"""A database in a notebook: frames and charts of its studies, the same that the dashboard and the report show.

    results = dataeff.open("dataeff.duckdb")  # shown by a notebook: each study's answer in one sentence
    results.limits_chart("quickstart")

Nothing is written. Every call opens the file for as long as its query takes, so a study may go on writing meanwhile.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from dataeff.errors import NotFoundError
from dataeff.records import queries
from dataeff.records.store import Database
from dataeff.reports.answer import study_answer
from dataeff.reports.charts import limits_chart
from dataeff.reports.frames import study_limits
from dataeff.reports.theme import Figure, themed


class Results:
    """The results in a DuckDB file. Methods raise as `Database.read` does; `study` may be omitted where there is only one."""

    def __init__(self, path: Path | str) -> None:
        """Open the file, or raise `NotFoundError` where there is none."""
        self.database = Database(path)
        with self.database.read():
            pass

    def sql(self, text: str, *parameters: Any) -> pd.DataFrame:
        """Return the rows of a query; tables and views are described in db/README.md. Raises `QueryError`."""
        with self.database.read() as connection:
            columns, rows = queries.query(connection, text, parameters)
        return pd.DataFrame(rows, columns=columns)

    @property
    def studies(self) -> list[str]:
        """The names of the recorded studies."""
        with self.database.read() as connection:
            return queries.study_names(connection)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {self._read(study_answer, name)['sentence']}" for name in self.studies) or "no study yet"

    def answer(self, study: str | None = None) -> pd.DataFrame:
        """Return the view `recipe_summary`, a row for each recipe and D: losses (nats/token), data efficiency, 90% intervals."""
        columns, rows = self._read(study_answer, study)["numbers"]
        return pd.DataFrame(rows, columns=columns)

    def summary(self, study: str | None = None) -> str:
        """Return the answer in one sentence, and its caveats."""
        answer = self._read(study_answer, study)
        return "\n".join([answer["sentence"], *answer["claims"], "", *answer["caveats"]])

    def limits_chart(self, study: str | None = None, dark: bool = False) -> Figure:
        """Return loss against parameters, one panel a budget, with laws and limits."""
        return themed(limits_chart(**self._read(study_limits, study)), dark)

    def _read(self, read: Callable[..., Any], study: str | None) -> Any:
        names = [study] if study else self.studies
        if len(names) != 1:
            raise NotFoundError(f"name a study: {', '.join(names) or 'this database has none yet'}")
        with self.database.read() as connection:
            return read(connection, names[0])
