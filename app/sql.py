"""The SQL page: a query typed here or given in the address, its rows, a chart of them, downloads.

The text runs apart from the server and within limits (`dataeff.records.untrusted`), so a link may run what it brings.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from urllib.parse import parse_qsl

import duckdb
import page
import streamlit as st

from dataeff.errors import DataeffError
from dataeff.records import documented, untrusted
from dataeff.reports.quick_chart import MARKS, drawable, quick_chart

CHART = ("x", "y", "colour", "mark", "log")
state = st.session_state


def load_query(text: str, chart: str = "") -> None:
    """Put a query into the editor, and the chart that goes with it below."""
    state.update(dict.fromkeys(CHART), query=text)
    state.update(parse_qsl(chart))


def put_into_address(name: str, chosen: str | None) -> None:
    """Put a choice into the address. Streamlit's own binding does not when a choice is made for the user."""
    if chosen:
        st.query_params[name] = chosen
    else:
        st.query_params.pop(name, None)


def download(answer: untrusted.QueryResult, form: str) -> bytes:
    """Return the rows as a file; DuckDB writes what it can also read."""
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        file, rows = Path(folder) / "answer", connection.from_arrow(answer.table)
        rows.write_csv(str(file)) if form == "CSV" else rows.write_parquet(str(file))
        return file.read_bytes()


def show_schema() -> None:
    names, columns = page.read(documented.columns)
    chosen = st.selectbox("Table or view", dict.fromkeys(row[0] for row in columns), None, placeholder="all", key="table")
    rows = [dict(zip(names, row, strict=True)) for row in columns if chosen in (None, row[0])]
    meaning = {"meaning": st.column_config.TextColumn(width="large")}
    st.dataframe(rows, hide_index=True, height=330, column_order=names[bool(chosen) :], column_config=meaning)


def ask(text: str) -> None:
    state.asked, begin = text, time.strftime("%H:%M:%S")
    try:
        with st.spinner("Asking the database"):
            state.answer = untrusted.ask(page.database.path, text)
        outcome = f"{state.answer.table.num_rows:,} rows"
    except DataeffError as error:
        state.answer, outcome = error, "no answer"
    state.history = [(begin, outcome, text), *state.get("history", [])][:50]


def show_answer(answer: untrusted.QueryResult) -> None:
    if answer.cut:
        st.warning(f"Cut: {answer.cut}")
    st.caption(f"{answer.table.num_rows:,} rows, asked at {state.history[0][0]}, in {answer.seconds:.1f} s")
    st.dataframe(answer.table, hide_index=True)
    with st.container(horizontal=True, gap="small"):
        page.offer("CSV", lambda: download(answer, "CSV"), "answer.csv")
        page.offer("Parquet", lambda: download(answer, "Parquet"), "answer.parquet")


def show_chart(answer: untrusted.QueryResult) -> None:
    fields = answer.table.column_names
    choices = {"x": (fields, "no chart"), "y": (fields, "no chart"), "colour": (fields, "none"), "mark": (MARKS, MARKS[0]),
               "log": (("x", "y", "x and y"), "none")}  # fmt: skip
    with st.container(horizontal=True):
        for name, (options, none) in choices.items():
            given = state.setdefault(name, st.query_params.get(name))
            state[name] = given if given in options else None
            title = {"x": "Chart: x", "y": "y", "log": "Log axes"}.get(name, name.capitalize())
            put_into_address(name, st.selectbox(title, options, None, placeholder=none, key=name, width=170))
    x, y, colour, mark, log = (state[name] for name in choices)
    if not (x and y):
        return
    logs = "x" in (log or ""), "y" in (log or "")
    names = {"x": x, "y": y, "colour": colour} if colour else {"x": x, "y": y}
    drawn, rows = drawable(answer.table, names, logs), answer.table.num_rows
    if left_out := rows - drawn.num_rows:
        st.caption(f"{left_out:,} of {rows:,} rows are not drawn: no value, not finite, or not above 0 on a log axis.")
    if drawn.num_rows:
        units = {name: unit for name, unit in documented.units().items() if unit != name}
        titles = {place: f"{name} ({units[name]})" if name in units else name for place, name in names.items()}
        page.show_chart(quick_chart(drawn, titles, mark or MARKS[0], *logs), "answer", drawn.to_pandas())


left, right = st.columns([3, 2], gap="medium")
with right:
    show_schema()
with left:
    offered = st.container(horizontal=True, gap="small")
    for question in documented.questions():
        offered.button(question.title, on_click=load_query, args=(question.text, question.chart), type="tertiary")
    with st.form("editor", border=False):
        st.html("<style>.st-key-query textarea {font-family: monospace; font-size: 14px}</style>")
        state.setdefault("query", st.query_params.get("query", ""))
        text = st.text_area("Query", height=260, max_chars=20_000, key="query", placeholder="FROM recipe_summary")
        again = st.form_submit_button("Run", type="primary", shortcut="Ctrl+Enter")
    st.caption(f"Read-only. At most {untrusted.SECONDS:g} s, {untrusted.ROWS:,} rows, {untrusted.MEGABYTES:,} MB of memory, "
               "no files. A study that writes waits for the query. `dataeff sql` is not limited in time or rows.")  # fmt: skip
put_into_address("query", text)
if text.strip() and (again or state.get("asked") != text):
    ask(text)
with offered.popover(f"History ({len(state.get('history', []))})", type="tertiary"):
    for number, (begin, outcome, past) in enumerate(state.get("history", [])):
        short = " ".join(past.split())[:80].replace("`", "")
        st.button(f"{begin}, {outcome}: `{short}`", on_click=load_query, args=(past,), key=f"past {number}", type="tertiary")
if isinstance(state.get("answer"), DataeffError):
    st.error("There is no answer.")
    st.code(str(state.answer), language=None, wrap_lines=True)
elif "answer" in state:
    show_answer(state.answer)
    show_chart(state.answer)
