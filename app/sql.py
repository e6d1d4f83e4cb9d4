"""The SQL page: a query typed here or given in the address, its rows, a chart of them, downloads.

The text runs apart from the server and within limits (`dataeff.records.sandbox`), so a link may run what it brings.
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
from dataeff.records import documented, sandbox
from dataeff.reports.quick_chart import MARKS, drawable, quick_chart

CHART = ("x", "y", "colour", "mark", "log")
state = st.session_state


def take(text: str, chart: str = "") -> None:
    """Put a query into the editor, and the chart that goes with it below."""
    state.update(dict.fromkeys(CHART), query=text)
    state.update(parse_qsl(chart))


def say(name: str, chosen: str | None) -> None:
    """Put a choice into the address. Streamlit's own binding does not when a choice is made for the user."""
    if chosen:
        st.query_params[name] = chosen
    else:
        st.query_params.pop(name, None)


def download(answer: sandbox.Answer, form: str) -> bytes:
    """Return the rows as a file; DuckDB writes what it can also read."""
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        file, rows = Path(folder) / "answer", connection.from_arrow(answer.table)
        rows.write_csv(str(file)) if form == "CSV" else rows.write_parquet(str(file))
        return file.read_bytes()


def show_schema() -> None:
    names, found = page.read(documented.columns)
    chosen = st.selectbox("Table or view", dict.fromkeys(row[0] for row in found), None, placeholder="all", key="table")
    rows = [dict(zip(names, row, strict=True)) for row in found if chosen in (None, row[0])]
    meaning = {"meaning": st.column_config.TextColumn(width="large")}
    st.dataframe(rows, hide_index=True, height=330, column_order=names[bool(chosen) :], column_config=meaning)


def ask(text: str) -> None:
    state.asked, begin = text, time.strftime("%H:%M:%S")
    try:
        with st.spinner("Asking the database"):
            state.answer = sandbox.ask(page.database.path, text)
        told = f"{state.answer.table.num_rows:,} rows"
    except DataeffError as error:
        state.answer, told = error, "no answer"
    state.history = [(begin, told, text), *state.get("history", [])][:50]


def show_answer(answer: sandbox.Answer) -> None:
    if answer.cut:
        st.warning(f"Cut: {answer.cut}")
    st.caption(f"{answer.table.num_rows:,} rows, asked at {state.history[0][0]}, in {answer.seconds:.1f} s")
    st.dataframe(answer.table, hide_index=True)
    with st.container(horizontal=True, gap="small"):
        for form in ("CSV", "Parquet"):
            content = lambda form=form: download(answer, form)  # noqa: E731
            st.download_button(form, content, f"answer.{form.lower()}", on_click="ignore", type="tertiary")


def show_chart(answer: sandbox.Answer) -> None:
    fields = answer.table.column_names
    choices = {"x": (fields, "no chart"), "y": (fields, "no chart"), "colour": (fields, "none"), "mark": (MARKS, MARKS[0]),
               "log": (("x", "y", "x and y"), "none")}  # fmt: skip
    with st.container(horizontal=True):
        for name, (options, none) in choices.items():
            given = state.setdefault(name, st.query_params.get(name))
            state[name] = given if given in options else None
            title = {"x": "Chart: x", "y": "y", "log": "Log axes"}.get(name, name.capitalize())
            say(name, st.selectbox(title, options, None, placeholder=none, key=name, width=170))
    x, y, colour, mark, log = (state[name] for name in choices)
    if not (x and y):
        return
    logs = "x" in (log or ""), "y" in (log or "")
    records = answer.records({x, y, colour})
    drawn = drawable(records, x, y, *logs)
    if left_out := len(records) - len(drawn):
        st.caption(f"{left_out:,} of {len(records):,} rows are not drawn: no value, not finite, or not above 0 on a log axis.")
    if drawn:
        chart = quick_chart(drawn, x, y, colour, mark or MARKS[0], *logs, documented.units(), page.dark())
        page.show_chart(chart, "answer", drawn)


left, right = st.columns([3, 2], gap="medium")
with right:
    show_schema()
with left:
    offered = st.container(horizontal=True, gap="small")
    for question in documented.questions():
        offered.button(question.title, on_click=take, args=(question.text, question.chart), type="tertiary")
    with st.form("editor", border=False):
        st.html("<style>.st-key-query textarea {font-family: monospace; font-size: 14px}</style>")
        state.setdefault("query", st.query_params.get("query", ""))
        text = st.text_area("Query", height=260, max_chars=20_000, key="query", placeholder="FROM recipe_summary")
        again = st.form_submit_button("Run", type="primary", shortcut="Ctrl+Enter")
    st.caption(f"Read-only. At most {sandbox.SECONDS:g} s, {sandbox.ROWS:,} rows, {sandbox.MEGABYTES:,} MB of memory, no files. "
               "A study that wants to write waits for the query. `dataeff sql` has no limits.")  # fmt: skip
say("query", text)
if text.strip() and (again or state.get("asked") != text):
    ask(text)
with offered.popover(f"History ({len(state.get('history', []))})", type="tertiary"):
    for number, (begin, told, past) in enumerate(state.get("history", [])):
        short = " ".join(past.split())[:80].replace("`", "")
        st.button(f"{begin}, {told}: `{short}`", on_click=take, args=(past,), key=f"past {number}", type="tertiary")
if isinstance(state.get("answer"), DataeffError):
    st.error("There is no answer.")
    st.code(str(state.answer), language=None, wrap_lines=True)
elif "answer" in state:
    show_answer(state.answer)
    show_chart(state.answer)
