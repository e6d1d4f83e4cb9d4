"""What pages share: the database, cached reads, choices that the URL holds, charts and tables with their downloads.

The URL is the state of a page. A choice is read from it at every run and written back when it changes, so links, reloads, Back
and a second tab show the same. What a page's URL was is kept for the links to it, by study.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any
from urllib.parse import quote, urlencode

import pandas as pd
import streamlit as st

from dataeff.errors import DataeffError, NotFoundError
from dataeff.facts.store import Store, write_atomically
from dataeff.records.queries import study_names
from dataeff.records.store import Database
from dataeff.reports.answer import plain
from dataeff.reports.charts import chart_bytes
from dataeff.reports.theme import Chart, themed

WATCH_SECONDS = 10
NUMBERS = {"i": st.column_config.NumberColumn(format="localized"), "f": st.column_config.NumberColumn(format="%.5g")}
LINKS = {"run_id": st.column_config.LinkColumn("run", display_text=r"run=(.{1,8})", width=90),
         "cell_id": st.column_config.LinkColumn("cell", display_text=r"cell=[^/]*/(.*)")}  # fmt: skip
# A chart scrolls where it is wider than the page; of a figure of panels the version that fits is shown.
STYLE = """<style>[data-testid=stVegaLiteChart] {max-width: 100%; overflow-x: auto}
[class*=st-key-wide-] svg.marks {max-width: 100%; height: auto}
@media (max-width: 800px) {[class*=st-key-wide-] {display: none}}
@media (min-width: 801px) {[class*=st-key-narrow-] {display: none}}</style>"""
database = Database(Path(os.environ.get("DATAEFF_DATABASE", "dataeff.duckdb")))
state, url = st.session_state, st.query_params


def read(ask: Callable[..., Any], *parameters: Any) -> Any:
    """Return ask(connection, *parameters), from a cache until the file is written again. Raises as `Database.read` does.

    `ask` is a function of a module, which its name stands for; it returns plain values.
    """
    return _read(written(), ask, parameters)


@st.cache_data(max_entries=200, show_spinner="Asking", hash_funcs={FunctionType: lambda f: f"{f.__module__}.{f.__qualname__}"})
def _read(written: float, ask: Callable[..., Any], parameters: tuple[Any, ...]) -> Any:
    with database.read() as connection:
        return ask(connection, *parameters)


def written() -> float:
    """Return when the database was last written, 0 where there is none."""
    files = (database.path, database.path.with_name(database.path.name + ".wal"))
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


@contextmanager
def show_errors() -> Iterator[None]:
    """Show what goes wrong in place of what could not be shown."""
    try:
        yield
    except DataeffError as error:
        st.error(plain(str(error)))


def begin(pages: Sequence[Any], shown: Any) -> None:
    """Show the sidebar: the studies, and the pages, each as it was left. Ends the page where no study is recorded."""
    st.html(STYLE)
    state.page, state.live, seen = shown.title, False, written()

    @st.fragment(run_every=WATCH_SECONDS)
    def watch() -> None:
        if written() != seen or state.live:
            st.rerun()
        when = time.strftime("last written %Y-%m-%d %H:%M:%S", time.localtime(seen)) if seen else "not written yet"
        st.caption(f"{plain(database.path.name)}, {when}")

    with st.sidebar:
        watch()
        try:
            names = read(study_names)
        except NotFoundError:
            names = []
        if names and (given := url.get("study")) not in names:
            if given:
                st.warning(f"No study '{plain(given)}' is recorded here: this is {plain(names[0])}.")
            url["study"] = names[0]
        state.study = url.get("study")
        if names:
            st.selectbox("Study", names, key="study", on_change=lambda: url.from_dict(left(state.page, state.study)))
            remember()
        for page in pages:
            st.page_link(page, query_params=left("" if page is shown else page.title, url["study"]) if names else None)
    if not names:
        st.info(f"No study is recorded in {plain(database.path.name)}. This page updates by itself once one is. To get one, run:")
        for command in ("run quickstart", "import laptop"):
            st.code(f"dataeff {command} --database {database.path}", "bash", wrap_lines=True)
        st.stop()


def choose_study() -> str:
    """Return the study chosen in the sidebar, which stays from page to page."""
    return url["study"]


def remember() -> None:
    """Keep the URL of this page for the links to it."""
    state.setdefault("urls", {})[state.page, url["study"]] = {name: url.get_all(name) for name in url}


def left(page: str, study: str) -> dict[str, Any]:
    """Return the choices with which a page was left in this study."""
    return state.setdefault("urls", {}).get((page, study), {"study": study})


def put(key: str, value: Any) -> None:
    """Put a choice into the URL; what is empty is left out."""
    if value in (None, "", []):
        url.pop(key, None)
    else:
        url[key] = [str(each) for each in value] if isinstance(value, list) else str(value)
    remember()


def address(page: str, **choices: Any) -> str:
    """Return the address of a page with these choices, in the study shown."""
    return f"{page}?{urlencode({'study': url['study'], **choices}, safe='/')}"


def bound(widget: Callable[..., Any], *arguments: Any, key: str, value: Any, default: Any = None, **more: Any) -> Any:
    """Return what is chosen in a widget that shows `value`, which the URL gave; the URL leaves out the default."""
    name = f"{state.page} {key}"
    if name not in state or state[name] != value:
        state[name] = value
    return widget(*arguments, key=name, on_change=lambda: put(key, None if state[name] == default else state[name]), **more)


def choose(label: str, options: Sequence[Any], key: str, widget: Callable[..., Any] = st.selectbox, **more: Any) -> Any:
    """Return the option chosen, at first the first, or the list of those chosen in a widget for several, at first none."""
    by_name = {str(option): option for option in options}
    chosen = [by_name[name] for name in url.get_all(key) if name in by_name]
    if widget is st.multiselect or more.get("selection_mode") == "multi":
        return bound(widget, label, options, key=key, value=chosen, default=[], **more)
    return bound(widget, label, options, key=key, value=[options[0], *chosen][-1], default=options[0], **more)


def linked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a chart whose dots open their cell."""
    return [row | ({"href": address("study", cell=row["cell_id"])} if row.get("cell_id") else {}) for row in rows]


def show_chart(chart: Chart, name: str, data: Sequence[dict[str, Any]]) -> None:
    """Show a chart in the colours of the page, and offer it as PNG and SVG, and its data, records of equal keys, as CSV.

    A figure with a caption is drawn wide and narrow, of which `STYLE` shows one; a single panel as wide as there is room.
    """
    dark = st.context.theme.type == "dark"
    wide, draw = themed(chart, dark), partial(st.vega_lite_chart, theme=None, width="content")
    if caption := chart.get("description"):
        for size, drawn in (("wide", wide), ("narrow", themed(chart, dark, narrow=True))):
            with st.container(key=f"{size} {name}"):
                draw(drawn, key=f"{name} chart {size}")
        st.caption(plain(caption))
    elif "concat" in chart:
        draw(wide, key=f"{name} chart", alt=name)
    else:
        with st.container(width=chart["width"] + 90):
            draw(wide | {"autosize": {"type": "fit", "contains": "padding"}}, width="stretch", key=f"{name} chart", alt=name)
    with st.container(horizontal=True, gap="small"):
        offer("PNG", lambda: chart_bytes(wide, "png"), f"{name}.png")
        offer("SVG", lambda: chart_bytes(wide, "svg"), f"{name}.svg")
        offer("data", lambda: pd.DataFrame(data).convert_dtypes().to_csv(index=False).encode(), f"{name} data.csv")


def offer(label: str, content: Callable[[], bytes], file: str) -> None:
    """Show a button that makes and downloads a file."""
    st.download_button(label, content, file, key=f"download {file}", type="tertiary", on_click="ignore")


def show_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], name: str, **options: Any) -> None:
    """Show rows as a table, which its toolbar downloads: numbers to five digits, '-' for NULL; `selected` rows are ticked."""
    table = pd.DataFrame(rows, columns=list(columns)).convert_dtypes()
    forms = {column: NUMBERS[kind] for column, dtype in table.dtypes.items() if (kind := dtype.kind) in NUMBERS}
    config = forms | LINKS | options.pop("column_config", {})
    ticked = {"selection": {"rows": options.pop("selected", []), "columns": [], "cells": []}}
    if "on_select" in options and state.get(f"{name} table") != ticked:
        state[f"{name} table"] = ticked
    st.dataframe(table, hide_index=True, key=f"{name} table", column_config=config, **{"placeholder": "-"} | options)


def show_records(rows: Sequence[dict[str, Any]], name: str, **options: Any) -> None:
    """Show records as a table, in which the ids of runs and cells are links."""
    of = {"run_id": lambda run: address("runs", run=run), "cell_id": lambda cell: address("study", cell=cell)}
    show_table(list(rows[0]), [[of.get(key, lambda v: v)(value) for key, value in row.items()] for row in rows], name, **options)


def show_notes(name: str) -> None:
    """Show notes that anybody may change. They are a file next to the database, which `rebuild` leaves as it is."""
    file, key = Store.beside(database.path).path / "notes" / f"{quote(name, safe=' ')}.md", f"notes {name}"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    with st.expander(f"Notes: {plain(text)[:80]}" if text.strip() else "Notes"):
        st.text_area("Notes", text, key=key, on_change=lambda: write_atomically(file, state[key]), label_visibility="collapsed")
