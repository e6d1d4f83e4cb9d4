"""A database in a notebook: frames and charts of its studies, the same that the dashboard and the report show.

    results = dataeff.open("dataeff.duckdb")
    results.limits_chart("quickstart")

Every call opens the file for as long as its query takes, so a study may go on writing meanwhile.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataeff.errors import NotFoundError
from dataeff.records import queries
from dataeff.records.store import Database
from dataeff.reports.answer import study_answer

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd


class Results:
    """The results in a DuckDB file. Methods raise as `Database.read` does; `study` may be omitted where there is only one."""

    def __init__(self, path: Path | str) -> None:
        """Open the file, or raise `NotFoundError` where there is none."""
        self.database = Database(path)
        with self.database.read():
            pass

    def sql(self, text: str, *parameters: Any) -> pd.DataFrame:
        """Return the rows of a query; tables and views are described in db/README.md. Raises `QueryError`."""
        import pandas as pd

        with self.database.read() as connection:
            columns, rows = queries.query(connection, text, parameters)
        return pd.DataFrame(rows, columns=columns)

    @property
    def studies(self) -> list[str]:
        """The names of the recorded studies."""
        with self.database.read() as connection:
            return [row[0] for row in queries.studies(connection)[1]]

    def answer(self, study: str | None = None) -> pd.DataFrame:
        """Return one row a recipe and D: limit and best loss trained (nats/token), data efficiency, 90% intervals."""
        import pandas as pd

        columns, rows = self._answer(study)["numbers"]
        return pd.DataFrame(rows, columns=columns)

    def summary(self, study: str | None = None) -> str:
        """Return the answer in one sentence, and its caveats."""
        answer = self._answer(study)
        return "\n".join([answer["sentence"], "", *answer["caveats"]])

    def _answer(self, study: str | None) -> dict[str, Any]:
        name = self._one(study)
        with self.database.read() as connection:
            return study_answer(connection, name)

    def limits_chart(self, study: str | None = None, dark: bool = False) -> alt.FacetChart:
        """Return loss against parameters, one panel a budget, with laws and limits."""
        from dataeff.reports.charts import limits_chart
        from dataeff.reports.frames import study_limits
        from dataeff.reports.theme import themed

        name = self._one(study)
        with self.database.read() as connection:
            found = study_limits(connection, name)
        return themed(limits_chart(**found), dark)

    def _one(self, study: str | None) -> str:
        names = self.studies
        if study is None and len(names) != 1:
            raise NotFoundError(f"name a study: {', '.join(names) or 'this database has none yet'}")
        name = study or names[0]
        with self.database.read() as connection:
            queries.require_study(connection, name)
        return name
