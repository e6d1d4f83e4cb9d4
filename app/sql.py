"""The SQL page: a query typed here or given in the URL, its rows, a chart of them, downloads.

The text runs apart from the server and within limits (`dataeff.records.untrusted`), so a link may run what it brings.
"""

import time
from urllib.parse import parse_qsl

import page
import pandas as pd
import streamlit as st

from dataeff.errors import DataeffError
from dataeff.records import documented, untrusted
from dataeff.reports import frames
from dataeff.reports.quick_chart import MARKS, quick_chart

state = page.state


def load(text: str, chart: str = "") -> None:
    """Put a query into the URL, and the chart that goes with it."""
    page.url.from_dict({"study": page.choose_study(), "query": text, **dict(parse_qsl(chart))})


def ask(text: str) -> None:
    state.asked, begin = text, time.strftime("%H:%M:%S")
    try:
        with st.spinner("Asking"):
            state.answer = untrusted.ask(page.database.path, text)
        outcome = f"{state.answer.table.num_rows:,} rows"
    except DataeffError as error:
        state.answer, outcome = error, "no answer"
    state.history = [(f"{begin}, {outcome}", text), *state.get("history", [])][:50]


def show_answer(answer: untrusted.QueryResult) -> None:
    cut = f" Cut: {answer.cut}." if answer.cut else ""
    st.caption(f"{answer.table.num_rows:,} rows, asked at {state.history[0][0][:8]}, in {answer.seconds:.1f} s.{cut}")
    st.dataframe(answer.table, hide_index=True)
    with st.container(horizontal=True, gap="small"):
        frame = answer.table.to_pandas(types_mapper=pd.ArrowDtype)
        page.offer("CSV", lambda: frame.to_csv(index=False).encode(), "answer.csv")
        page.offer("Parquet", lambda: frame.to_parquet(index=False), "answer.parquet")
    options = dict.fromkeys(("x", "y", "colour"), ["none", *answer.table.column_names])
    options |= {"mark": list(MARKS), "log": ["none", "x", "y", "xy"]}  # "x" is not in "none"
    with st.container(horizontal=True):
        *names, mark, logs = (page.choose(name.capitalize(), of, name, width=150) for name, of in options.items())
    if "none" not in names[:2]:
        names, recipes = [name for name in names if name != "none"], page.read(frames.recipes, page.choose_study())
        rows = answer.table.select(list(dict.fromkeys(names))).to_pylist()
        page.show_chart(quick_chart(answer.table, names, mark, logs, recipes), "answer", rows)


left, right = st.columns([3, 2], gap="medium")
names, columns = page.read(documented.columns)
right.dataframe([dict(zip(names, row, strict=True)) for row in columns], hide_index=True, height=420)
with left:
    examples = st.container(horizontal=True, gap="small")
    for question in documented.questions():
        examples.button(question.title, on_click=load, args=(question.text, question.chart), type="tertiary")
    text = page.url.get("query", "")
    if "query" not in state or state.get("loaded") != text:
        state.query = state.loaded = text
    with st.form("editor", border=False):
        st.html("<style>.st-key-query textarea {font-family: monospace; font-size: 14px}</style>")
        st.text_area("Query", height=260, max_chars=20_000, key="query", placeholder="FROM recipe_summary")
        run = {"shortcut": "Ctrl+Enter", "on_click": lambda: page.put("query", state.query)}
        again = st.form_submit_button("Run", type="primary", **run)
    limits = f"{untrusted.SECONDS:g} s, {untrusted.ROWS:,} rows, {untrusted.MEGABYTES:,} MB of memory, no files"
    st.caption(f"Read-only. At most {limits}. A study that writes waits for the query. `dataeff sql` has no such limits.")
if text.strip() and (again or state.get("asked") != text):
    ask(text)
with examples.popover(f"History ({len(state.get('history', []))})", type="tertiary"):
    for number, (outcome, past) in enumerate(state.get("history", [])):
        short = " ".join(past.split())[:80].replace("`", "")
        st.button(f"{outcome}: `{short}`", on_click=load, args=(past,), key=f"past {number}", type="tertiary")
if isinstance(answer := state.get("answer"), DataeffError):
    st.error("There is no answer.")
    st.code(str(answer), language=None, wrap_lines=True)
elif answer:
    show_answer(answer)
