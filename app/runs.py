"""The Runs page: the runs that choices leave and their curves side by side; and one run, or another job."""

import json
import math
from typing import Any

import page
import streamlit as st

from dataeff.records import queries
from dataeff.reports import frames, runs

SHOWN = ["run_id", "val_loss", "recipes", "seed_tokens", "sizes", "lr", "weight_decay", "epochs", "train_seed", "status"]
SORTS = [*SHOWN[1:], "wall_seconds", "-val_loss", "-wall_seconds", "-ended_at"]
FILTERS = {"recipes": "Recipe", "seed_tokens": "D (tokens)", "sizes": "Size", "status": "Status"}
CURVE = {"curve": [*runs.CURVES], "against": [*runs.ACROSS], "smoothing (%)": [0, 1, 2, 5, 10, 20], "log": ["-", "x", "y", "xy"]}
ROWS, MOST_COMPARED = 500, 20


def show_runs(study: str, compared: list[str]) -> None:
    """Show a page of the runs that the choices leave; those ticked in it join, or leave, the ones compared."""
    with st.sidebar:
        of = study if page.choose("Runs of", ["this study", "all studies"], "of") == "this study" else None
        (facets,) = page.read(queries.records, runs.FACETS, [of])
        chosen = {name: page.choose(title, facets[name] or [], name, st.multiselect) for name, title in FILTERS.items()}
        sort = page.choose("Sort by", SORTS, "sort", format_func=lambda name: name.replace("-", "descending "))
    number = max(1, int(page.url.get("page", "1")))
    text = runs.table_query(runs.matching(of, **chosen), sort, ROWS, ROWS * (number - 1))
    found = page.read(queries.records, text)
    matching = max((row.pop("matching") for row in found), default=0)
    ids, name = [row["run_id"] for row in found], f"runs {of} {chosen} {sort} {number}"

    def compare() -> None:
        ticked = [ids[row] for row in page.state[f"{name} table"].selection.rows]
        page.put("runs", [*(run for run in compared if run not in ids), *ticked])

    if found:
        selected = [i for i, run_id in enumerate(ids) if run_id in compared]
        page.show_records(found, name, column_order=SHOWN, on_select=compare, selected=selected)
    st.caption(f"{matching:,} runs match. Tick rows to compare their curves.")
    if matching > ROWS:
        page.bound(st.pagination, math.ceil(matching / ROWS), key="page", value=number, default=1)


def show_curves(study: str, chosen: list[dict[str, Any]], name: str) -> None:
    """Draw a curve of the runs with a choice of which, against what, how."""
    with st.container(horizontal=True):
        curve, across, smoothing, logs = (page.choose(name, of, name.split()[0], width=150) for name, of in CURVE.items())
    ids = [run["run_id"] for run in chosen]
    if points := page.read(runs.curves, ids, curve, across, smoothing, "x" in logs):
        page.show_chart(runs.curves_chart(points, chosen, curve, across, logs, page.read(frames.recipes, study)), name, points)
        st.caption("Long curves are thinned to their extremes. Drag to move, shift and wheel to zoom, double click to reset.")
    drawn = {(point["run_id"], point["name"]) for point in points}
    for quantity in runs.CURVES[curve]:
        if lacking := [run_id[:8] for run_id in ids if (run_id, quantity) not in drawn]:
            st.caption(f"No {quantity} along training is recorded of {', '.join(lacking)}: imported runs have none.")


def show_job(study: str, given: str) -> None:
    """Show one run, or a job of another kind: all that is recorded of it."""
    details = page.read(queries.job_details, given)
    row, kind = details["row"], details["kind"].replace("train", "run")
    job = next(iter(row.values()))
    st.header(f"{kind.capitalize()} {job}", anchor=False)
    if row.get("val_loss") is not None:
        error = row["val_loss_standard_error"]
        st.text(f"Validation loss {row['val_loss']:.4f}{'' if error is None else f' ± {error:.4f}'} nats/token")
    page.show_notes(f"{kind} {job}")
    left, right = st.columns(2)
    with left:
        facts = [(name, frames.readable(value)) for name, value in row.items() if name not in ("spec", "result")]
        page.show_table(["recorded", "value"], facts, f"facts of {job}")
    right.json({name: json.loads(row[name]) for name in ("spec", "result") if row.get(name)}, expanded=1)
    near = page.read(queries.records, runs.NEIGHBOURS, [job])
    parts = {"Attempts": details["attempts"], "Cells that use it": details["cells"], "Neighbours: one grid step away": near}
    for title, rows in parts.items():
        st.subheader(title if rows else f"{title}: none recorded", anchor=False)
        if rows:
            page.show_records(rows, f"{title} of {job}")
    if kind == "run":
        show_curves(study, page.read(runs.chosen_runs, [job]), f"curves {job}")


study, compared = page.choose_study(), page.url.get_all("runs")
with st.sidebar:
    given = page.bound(st.text_input, "Open run", key="run", value=page.url.get("run", ""), placeholder="the beginning of its id")
if given.strip():
    show_job(study, given.strip())
else:
    show_runs(study, compared)
    if compared:
        page.bound(st.multiselect, "Runs compared", compared, key="runs", value=compared)
        show_curves(study, page.read(runs.chosen_runs, compared)[:MOST_COMPARED], "curves")
