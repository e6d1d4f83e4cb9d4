"""What pages share: the database, cached reads, choices that the URL holds, charts and tables with their downloads.

The URL is the state of a page. A choice is read from it at every run and written back when it changes, so links, reloads, Back
and a second tab show the same. What a page's URL was is kept for the links to it, by study.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar
from urllib.parse import urlencode

import altair as alt
import pandas as pd
import streamlit as st

from dataeff.errors import DatabaseError, DataeffError, NotFoundError
from dataeff.records.store import Database
from dataeff.reports.charts import chart_bytes
from dataeff.reports.progress import study_names
from dataeff.reports.theme import Figure, themed

Answer, Option = TypeVar("Answer"), TypeVar("Option")
WATCH_SECONDS, REDRAW_SECONDS = 5, 15  # when the file was written; a page whose file is written again and again
NUMBERS = {"i": st.column_config.NumberColumn(format="localized"), "f": st.column_config.NumberColumn(format="%.5g")}
# A chart that is wider than a phone scrolls inside itself, never the page.
STYLE = """<style>[data-testid=stVegaLiteChart], [data-testid=stFullScreenFrame] {max-width: 100%; overflow-x: auto}
[class*=st-key-wide-] svg.marks {max-width: 100%; height: auto}
@media (max-width: 800px) {[class*=st-key-wide-] {display: none}}
@media (min-width: 801px) {[class*=st-key-narrow-] {display: none}}
</style>"""
database = Database(Path(os.environ.get("DATAEFF_DATABASE", "dataeff.duckdb")))
state, url = st.session_state, st.query_params


def read(ask: Callable[..., Answer], *parameters: Any) -> Answer:
    """Return ask(connection, *parameters), from a cache until the file is written again. Raises as `Database.read` does.

    `ask` is a function of a module, which its name stands for; it returns plain values.
    """
    return _ask(written(), ask, parameters, connected=True)


def ask(ask: Callable[..., Answer], *parameters: Any) -> Answer:
    """Return ask(path of the database, *parameters), cached like `read`, for what opens the file by itself."""
    return _ask(written(), ask, parameters, connected=False)


def written() -> float:
    """Return when the database was last written, 0 where there is none."""
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


@contextmanager
def show_errors() -> Iterator[None]:
    """Show what goes wrong with the database in place of what could not be shown."""
    try:
        yield
    except DataeffError as error:
        state.failed = isinstance(error, DatabaseError)  # which may pass
        st.error(plain(str(error)))


def begin(pages: Sequence[Any], shown: Any) -> None:
    """Show the sidebar: the pages, each as it was left, and the studies. Ends the page where no study is recorded."""
    state.page, state.failed = shown.title, True
    drawn, seen = time.monotonic(), written()

    @st.fragment(run_every=WATCH_SECONDS)
    def watch() -> None:
        pause = WATCH_SECONDS if state.failed else REDRAW_SECONDS
        if (state.failed or written() != seen) and time.monotonic() > drawn + pause - 1:
            st.rerun()
        when = time.strftime("last written %Y-%m-%d %H:%M:%S", time.localtime(written())) if written() else "not written yet"
        st.caption(f"{plain(database.path.name)}, {when}")

    with st.sidebar:
        places = [st.empty() for _ in pages]
        watch()
    try:
        names = read(study_names)
    except NotFoundError:
        names = []
    state.failed = not names
    study = _choose_study(names) if names else None
    for place, page in zip(places, pages, strict=True):
        left = {} if page is shown else state.setdefault("urls", {}).get((page.title, study), {})
        place.page_link(page, query_params=left or ({"study": study} if study else None))
    if not names:
        file = "" if database.path.name == "dataeff.duckdb" else f" --database {database.path}"
        st.info(f"No study is recorded in {plain(database.path.name)} yet. This page updates by itself once there is one.")
        st.code(f"dataeff run quickstart{file}    # train a small study in minutes\n"
                f"dataeff import laptop{file}     # or look at the bundled results", language="bash")  # fmt: skip
        st.stop()
    remember()


def _choose_study(names: list[str]) -> str:
    given = url.get("study")
    if given not in names:
        if given:
            st.warning(f"No study '{plain(given)}' is recorded here: {plain(names[0])} is shown.")
        url["study"] = names[0]
    if state.get("study") != url["study"]:
        state.study = url["study"]
    back = lambda: url.from_dict(state.urls.get((state.page, state.study), {"study": state.study}))  # noqa: E731
    return st.sidebar.selectbox("Study", names, key="study", on_change=back)


def choose_study() -> str:
    """Return the study chosen in the sidebar, which stays from page to page."""
    return url["study"]


def put(key: str, value: Any) -> None:
    """Put a choice into the URL; what is empty is left out."""
    if value in (None, "", False, []):
        url.pop(key, None)
    else:
        url[key] = [str(each) for each in value] if isinstance(value, list) else str(value)
    remember()


def remember() -> None:
    """Keep the URL of this page for the links to it."""
    state.setdefault("urls", {})[state.page, url.get("study")] = {name: url.get_all(name) for name in url}


def address(page: str, **choices: Any) -> str:
    """Return the address of a page with these choices, in the study shown."""
    return f"{page}?{urlencode({'study': url['study'], **choices}, safe='/')}"


def bound(widget: Callable[..., Any], label: str, *arguments: Any, key: str, value: Any, default: Any = None, **more: Any) -> Any:
    """Return what is chosen in a widget that shows `value`, which the URL gave; the URL leaves out the default."""
    name = f"{state.page} {key}"
    if name not in state or state[name] != value:
        state[name] = value
    changed = lambda: put(key, None if state[name] == default else state[name])  # noqa: E731
    return widget(label, *arguments, key=name, on_change=changed, **more)


def choose(label: str, options: Sequence[Option], key: str, widget: Callable[..., Any] = st.selectbox, **more: Any) -> Any:
    """Return the option chosen, or the list of those of a widget for several; `default` is chosen first, else the first or none."""
    by_name = {str(option): option for option in options}
    chosen = [by_name[name] for name in url.get_all(key) if name in by_name]
    if widget is st.multiselect or more.get("selection_mode") == "multi":
        default = list(more.pop("default", ()))
        return bound(widget, label, options, key=key, value=chosen or default, default=default, **more)
    default = more.pop("default", options[0])
    return bound(widget, label, options, key=key, value=chosen[-1] if chosen else default, default=default, **more)


def plain(text: str) -> str:
    """Return Markdown that shows text as it is, on one line: what a study's author wrote is no markup."""
    return re.sub(r"([\\`*_{}\[\]<>$#~|!])", r"\\\1", " ".join(text.split()))


def show_sentences(sentences: Sequence[str]) -> None:
    """Show sentences, those that begin with two spaces as items of the one before."""
    st.markdown("\n".join(f"- {plain(line)}" if line[:2] == "  " else f"\n{plain(line)}\n" for line in sentences))


def show_chart(chart: Figure | alt.TopLevelMixin, name: str, data: Sequence[dict[str, Any]]) -> None:
    """Show a chart in the colours of the page, and offer it as PNG and SVG, and its data, records of equal keys, as CSV.

    A figure of panels is drawn twice, of which `STYLE` shows the one that fits the width of the page.
    """
    dark = st.context.theme.type == "dark"
    chart, narrow = themed(chart, dark), themed(chart, dark, narrow=True)
    if isinstance(chart, Figure):
        for width, drawn in (("wide", chart), ("narrow", narrow)):
            with st.container(key=f"{width} {name}"):
                st.vega_lite_chart(drawn.spec, theme=None, width="content", key=f"{name} chart {width}")
        st.caption(plain(chart.spec["description"]))
    elif isinstance(chart, alt.Chart | alt.LayerChart) and isinstance(chart.width, int):  # as wide as there is room
        fitted = chart.properties(autosize=alt.AutoSizeParams(type="fit", contains="padding"))
        with st.container(width=chart.width + 90):
            st.altair_chart(fitted, theme=None, width="stretch", key=f"{name} chart")
    else:
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
