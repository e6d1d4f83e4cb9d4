"""The Runs page: the runs that choices leave, their curves side by side, what good ones have in common; and one run."""

from __future__ import annotations

import json
import math
from typing import Any
from urllib.parse import urlencode
from zlib import crc32

import page
import streamlit as st

from dataeff.records import queries
from dataeff.reports import runs

SHOWN = ["val_loss", "recipes", "seed_tokens", "sizes", "lr", "weight_decay", "epochs", "train_seed", "status", "wall_seconds"]
MOST_COMPARED = 20
URL = {"bind": "query-params"}
LINKS = {
    "difference": st.column_config.NumberColumn(format="%+.4f", help="from this run's loss (nats/token)"),
    "cell": st.column_config.LinkColumn(display_text=r"cell=(.*)", help="opens the page of the study"),
    "run": st.column_config.LinkColumn(display_text=r"run=(.{1,8})", width=90, help="opens the page of the run"),
}


def link(run_id: str | None) -> str | None:
    return f"runs?run={run_id}" if run_id else None


def choose() -> str:
    """Return the SQL of the runs to show."""
    everything = st.sidebar.toggle("Runs of all studies", key="everything", **URL)
    study = None if everything or not page.read(queries.studies)[1] else page.choose_study()
    facets = page.read(runs.facets, study)
    titles = {"recipes": ("Recipe", "recipe"), "seed_tokens": ("D (tokens)", "D"), "sizes": ("Size", "size"),
              "status": ("Status", "status")}  # fmt: skip
    chosen = {name: st.sidebar.multiselect(title, facets[name], key=key, **URL) for name, (title, key) in titles.items()}
    condition = st.text_input("Condition in SQL", key="where", placeholder="lr < 0.01 and epochs >= 8", **URL).strip()
    return runs.matching(study, **chosen, ids=page.ask(runs.ids_where, study, condition) if condition else None)


def show_table(matched: str, chosen: list[str]) -> None:
    """Show a page of the runs; those ticked in it join, or leave, the chosen ones."""
    columns = list(page.read(runs.run_columns))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        sort = st.selectbox("Sort by", columns, index=columns.index("val_loss"), key="sort", width=220, **URL)
        descending = st.toggle("Descending", key="descending", **URL)
        most = st.selectbox("Rows", [100, 1000, 10_000], index=1, key="rows", width=110, **URL)
        shown = st.multiselect("Columns", columns, SHOWN, key="column", **URL)
    matching = page.read(queries.query, runs.count_query(matched))[1][0][0]
    pages = max(1, math.ceil(matching / most))
    above = st.container()
    number = st.pagination(pages, key="page", **URL) if pages > 1 else 1
    first = (number - 1) * most
    names, rows = page.read(queries.query, runs.table_query(matched, ["run_id", *shown], sort, descending, most, first))
    which = "all" if pages == 1 else f"{first + 1:,} to {first + len(rows):,}"
    above.caption(f"{matching:,} runs match; {which} are shown. Tick rows to compare their curves.")
    ids = [row[0] for row in rows]
    turn = st.session_state.get("turn", 0)
    view = f"runs {crc32(f'{matched} {sort} {descending} {most} {number} {turn}'.encode()):08x}"  # another view, other ticks

    def compare() -> None:
        ticked = [ids[i] for i in st.session_state[f"{view} table"].selection.rows]
        st.session_state.runs = [*(r for r in chosen if r not in ids or r in ticked), *(r for r in ticked if r not in chosen)]

    with above:
        page.show_table(
            ["run", *names],
            [(link(row[0]), *row) for row in rows],
            view,
            column_config=LINKS,
            column_order=["run", *shown],
            on_select=compare,
            selection_default={"selection": {"rows": [i for i, run_id in enumerate(ids) if run_id in chosen]}},
        )


def show_curves(chosen: list[dict[str, Any]], name: str) -> None:
    """Draw the curves of the runs with a choice of what, against what, how."""
    ids = [run["run_id"] for run in chosen]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        drawn = st.multiselect("Curves", runs.QUANTITIES, ["train_loss", "val_loss"], key="curve", **URL)
        across = st.selectbox("Against", list(runs.ACROSS), key="against", width=120, **URL)
        smoothing = st.slider("Smoothing: mean over % of a run", 0.0, 20.0, 0.0, 0.5, key="smoothing", width=260, **URL)
        log_x = st.toggle("Log x", key="logx", **URL)
        log_y = st.toggle("Log y", key="logy", **URL)
    points = page.read(runs.curves, tuple(ids), tuple(drawn), across, smoothing, log_x, log_y)
    if any(point["x"] is not None for point in points):
        page.show_chart(runs.curves_chart(points, runs.labels(chosen), across, log_x, log_y), name, points)
    for line in runs.curves_note(points, ids, drawn, across):
        st.caption(line)


def choose_runs() -> list[dict[str, Any]]:
    """Return the runs chosen to be compared: in the table, or here."""
    given = st.multiselect(
        "Runs to compare",
        st.session_state.get("runs", []),
        key="runs",
        accept_new_options=True,
        placeholder="tick rows above, or give ids",
        on_change=lambda: st.session_state.update(turn=st.session_state.get("turn", 0) + 1),
        **URL,
    )
    chosen, wrong = page.read(runs.chosen_runs, tuple(part for each in given for part in each.split(",") if part))
    for line in wrong:
        st.warning(line)
    return chosen


def show_comparison(chosen: list[dict[str, Any]]) -> None:
    if len(chosen) > MOST_COMPARED:
        st.warning(f"The first {MOST_COMPARED} of {len(chosen)} chosen runs are drawn: more cannot be told apart.")
    if chosen := chosen[:MOST_COMPARED]:
        names = ["val_loss", "val_loss_standard_error", "train_loss", *runs.differing(chosen), "training_flops", "wall_seconds"]
        rows = [(link(run["run_id"]), *(run[name] for name in names)) for run in chosen]
        page.show_table(["run", *names], rows, "chosen runs", column_config=LINKS)
        show_curves(chosen, "curves")


def show_parallel(matched: str) -> None:
    st.subheader("What good runs have in common", anchor=False)
    if lines := page.read(queries.records, runs.parallel_query(matched)):
        page.show_chart(runs.parallel_chart(lines), "parallel coordinates", lines)
        for line in runs.parallel_note(lines):
            st.caption(line)


def show_run(given: str) -> None:
    details = page.read(queries.job_details, given)
    st.sidebar.button("All runs", on_click=lambda: st.session_state.update(run=""))
    if details["kind"] != "train":
        show_job(details)
        return
    run, run_id = details["row"], details["row"]["run_id"]
    st.header(f"Run {run_id}", anchor=False)
    for (head, facts), column in zip(runs.run_facts(run).items(), st.columns(4), strict=True):
        column.markdown(f"**{head}**")
        column.text("\n".join(f"{name}: {value}" for name, value in facts.items()))
    with st.expander("Spec"):
        st.json(json.loads(run.get("spec") or "{}"))
    show_rows("Attempts", details["attempts"], f"attempts of {run_id}", "None is recorded: imported results hold none.")
    st.subheader("Curve", anchor=False)
    show_curves([run], f"curves {run_id}")
    cells = [{"cell": "study?" + urlencode({"study": cell["study"], "cell": cell["cell_id"]}, safe="/"), **cell}
             for cell in details["cells"]]  # fmt: skip
    show_rows("Where it is used", cells, f"cells of {run_id}", "In no cell of a study.")
    near = [{"run": link(row["run_id"]), **row} for row in page.read(runs.neighbours, run_id)]
    show_rows("Neighbours: one grid step away", near, f"neighbours of {run_id}", "No search of a cell tried this run.")


def show_job(details: dict[str, Any]) -> None:
    """A job that is no run: all that is recorded of it."""
    st.header(f"{details['kind'].capitalize()} {next(iter(details['row'].values()))}", anchor=False)
    st.json({name: json.loads(value) if name in ("spec", "result") else value for name, value in details["row"].items()})
    show_rows("Attempts", details["attempts"], "attempts", "None is recorded: imported results hold none.")
    show_rows("Where it is used", details["cells"], "cells", "In no cell of a study.")


def show_rows(title: str, rows: list[dict[str, Any]], name: str, otherwise: str) -> None:
    st.subheader(title, anchor=False)
    if rows:
        hidden = {"run_id": None, "study": None, "cell_id": None}
        page.show_table(list(rows[0]), [tuple(row.values()) for row in rows], name, column_config=LINKS | hidden)
    else:
        st.caption(otherwise)


if given := st.sidebar.text_input("Open run", key="run", placeholder="its id, or the beginning", **URL).strip():
    show_run(given)
else:
    matched = choose()
    above = st.container()
    st.subheader("Curves of chosen runs", anchor=False)
    chosen = choose_runs()
    with above:
        show_table(matched, [run["run_id"] for run in chosen])
    show_comparison(chosen)
    show_parallel(matched)
