"""What pages share: the database, cached reads, the choice of a study, charts and tables with their downloads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import altair as alt
import pandas as pd
import streamlit as st

from dataeff.errors import DatabaseError, DataeffError
from dataeff.records import queries
from dataeff.records.store import Database
from dataeff.reports.answer import plain
from dataeff.reports.charts import chart_bytes
from dataeff.reports.theme import themed
from dataeff.study.fits import renew_fits

Answer, Option = TypeVar("Answer"), TypeVar("Option")
REST_SECONDS = 60  # since the file was last written
NUMBERS = {"i": st.column_config.NumberColumn(format="localized"), "f": st.column_config.NumberColumn(format="%.5g")}
database = Database(Path(os.environ.get("DATAEFF_DATABASE", "dataeff.duckdb")))


def read(ask: Callable[..., Answer], *parameters: Any) -> Answer:
    """Return ask(connection, *parameters), from a cache until the file is written again. Raises as `Database.read` does.

    `ask` is a function of a module, which its name stands for; it returns plain values.
    """
    return _ask(_written(), ask, parameters, connected=True)


def ask(ask: Callable[..., Answer], *parameters: Any) -> Answer:
    """Return ask(path of the database, *parameters), cached like `read`, for what opens the file by itself."""
    return _ask(_written(), ask, parameters, connected=False)


def _written() -> float:
    files = (database.path, database.path.with_name(database.path.name + ".wal"))
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


@st.cache_data(
    max_entries=200,
    show_spinner="Asking the database",
    hash_funcs={FunctionType: lambda function: f"{function.__module__}.{function.__qualname__}"},
)
def _ask(written: float, ask: Callable[..., Any], parameters: tuple[Any, ...], connected: bool) -> Any:
    if not connected:
        return ask(database.path, *parameters)
    with database.read() as connection:
        return ask(connection, *parameters)


def say_how_old() -> None:
    """Say which file is shown and when it was last written."""
    if written := _written():
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(written))
        st.sidebar.caption(f"{database.path.name}, last written {when}")


def choose_study() -> str:
    """Return the study chosen in the sidebar, which stays from page to page; ends the page where there is none."""
    _, rows = read(queries.studies)
    names = [row[0] for row in rows]
    if not names:
        st.info("No study is recorded yet. Run one: `dataeff run quickstart`, or import the bundled results: "
                "`dataeff import laptop`")  # fmt: skip
        st.stop()
    return st.sidebar.selectbox("Study", names, key="study", bind="query-params", persist_state="session")


@contextmanager
def show_errors() -> Iterator[None]:
    """Show what goes wrong with the database in place of what could not be shown."""
    try:
        yield
    except DataeffError as error:
        st.error(plain(str(error)))


def renew(study: str) -> None:
    """Bring the study's intervals up to date once the file is at rest; a study under way renews them by itself."""
    if time.time() - _written() > REST_SECONDS:
        _renew(_written(), study)


@st.cache_data(max_entries=20, show_spinner="Fitting the laws")
def _renew(written: float, study: str) -> None:
    try:
        renew_fits(database, study)
    except DatabaseError as error:
        st.caption(f"Intervals are as they were: {error}")


def show_sentences(sentences: Sequence[str]) -> None:
    """Show sentences, those that begin with two spaces as items of the one before."""
    st.markdown("\n".join(f"- {plain(line)}" if line[:2] == "  " else f"\n{plain(line)}\n" for line in sentences))


def choose(label: str, options: Sequence[Option], key: str, widget: Callable[..., Any] = st.selectbox, **more: Any) -> Option:
    """Return what is chosen; the URL names it also when the options have changed around it.

    Streamlit leaves the first option out of the URL, and does not notice that what was the first no longer is.
    """
    before = st.session_state.get(f"{key} options")
    if before not in (None, list(options)) and st.session_state.get(key) in options:
        st.session_state[key] = st.session_state[key]
    st.session_state[f"{key} options"] = list(options)
    return widget(label, options, key=key, bind="query-params", **more)


def show_chart(chart: alt.TopLevelMixin, name: str, data: Sequence[dict[str, Any]]) -> None:
    """Show a chart in the colours of the page, and offer it as PNG and SVG, and its data, records of equal keys, as CSV."""
    chart = themed(chart, dark=st.context.theme.type == "dark")
    st.altair_chart(chart, theme=None, width="content", key=f"{name} chart")
    with st.container(horizontal=True, gap="small"):
        offer("PNG", lambda: chart_bytes(chart, "png"), f"{name}.png")
        offer("SVG", lambda: chart_bytes(chart, "svg"), f"{name}.svg")
        offer("data", lambda: _csv(pd.DataFrame(data).convert_dtypes()), f"{name} data.csv")


def show_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], name: str, **options: Any) -> None:
    """Show rows as a table: numbers to five digits, '-' for NULL; with a download of all of them as CSV."""
    table = pd.DataFrame(rows, columns=list(columns)).convert_dtypes()
    forms = {column: NUMBERS[kind] for column, dtype in table.dtypes.items() if (kind := dtype.kind) in NUMBERS}
    config = forms | options.pop("column_config", {})
    st.dataframe(table, hide_index=True, key=f"{name} table", column_config=config, **{"placeholder": "-"} | options)
    offer("CSV", lambda: _csv(table), f"{name}.csv")


def offer(label: str, content: Callable[[], bytes], file: str) -> None:
    """Show a button that makes and downloads a file."""
    st.download_button(label, content, file, key=f"download {file}", type="tertiary", on_click="ignore")


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False).encode()
