"""The Study page: how a study stands, its cells, and how the search walked the grid of one of them.

Its two halves run again by themselves while something is under way, and only then. What was read before comes from the cache
until the file is written again; only the attempts under way are looked for each time.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import page
import streamlit as st

from dataeff.reports import progress
from dataeff.reports.answer import plain
from dataeff.reports.search import cell_search, search_chart
from dataeff.reports.text import duration

LOOK_SECONDS, REDRAW_SECONDS = 5, 15  # how it stands; the cells and the chart, which flicker when they are drawn again
FRESH_SECONDS = 60  # a file written so lately is one that a study writes to
STATES = ("certified", "boundary", "open", "searching", "waiting", "blocked")
COLUMNS = (
    *("recipe", "seed_tokens", "size", "state", "best_loss", "margin", "lr", "weight_decay", "epochs", "runs", "diverged"),
    *("objective", "reason"),
)
LOSS = st.column_config.NumberColumn(format="%.4f", help="nats/token")
LINK = st.column_config.LinkColumn("run", display_text=r"run=(.{8})", width=90, help="opens the page of the run")


def look(study: str) -> tuple[list[dict[str, Any]], str | None]:
    """Return the unfinished attempts, and why to look again: one is under way, or the file was written just now."""
    with page.database.read() as connection:
        attempts = progress.under_way(connection, study)
    if any(attempt["live"] for attempt in attempts):
        return attempts, "since attempts are under way"
    fresh = time.time() - page.database.path.stat().st_mtime < FRESH_SECONDS
    return attempts, "since the file was written less than a minute ago" if fresh else None


def show_standing(study: str, attempts: list[dict[str, Any]], live: str | None) -> None:
    again = f"and every {LOOK_SECONDS} s, {live}" if live else "nothing is under way: reload to look again"
    st.caption(f"Looked at {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}, {again}.")
    counts = page.read(progress.standing, study)
    shown = {state: counts[state] for state in STATES if counts[state] or state in STATES[:3]}
    shown |= {"runs recorded": counts["runs"], "diverged": counts["diverged"]}
    shown["under way"] = sum(attempt["live"] for attempt in attempts)
    for column, (name, count) in zip(st.columns(len(shown)), shown.items(), strict=True):
        column.metric(name, f"{count:,}")
    ended = f"{counts['searches_ended']:,} of {counts['cells']:,} searches have ended."
    st.text(f"{ended} {time_left(study, shown['under way'])}")


def time_left(study: str, at_once: int) -> str:
    """Say what the rest is likely to take."""
    left = page.read(progress.time_left, study)
    if left["unknown"]:
        return f"What {left['unknown']:,} imported cells lack is not known here."
    if not left["cells"]:
        return "Nothing is left to train."
    runs = f"About {left['runs']:,} runs are left, {left['flops']:.2g} FLOPs"
    if left["seconds"] is None:
        return f"{runs}; no run is recorded yet, so their time is not known."
    together = f", {duration(left['seconds'] / at_once)} with {at_once} at once as now" if at_once > 1 else ""
    return f"{runs}: {duration(left['seconds'])} one after another{together}. A search decides as it goes: this is an estimate."


def show_attempts(study: str, attempts: list[dict[str, Any]]) -> None:
    if attempts:
        st.subheader("Unfinished attempts", anchor=False)
        names = ("job", "seed_tokens", "size", "since", "sign", "host", "device", "process", "attempt", "id")
        page.show_table(names, [[attempt[name] for name in names] for attempt in attempts], f"{study} under way", placeholder="-")
    failed = page.read(progress.failures, study)
    if failed:
        outcomes = [row["outcome"] for row in failed]
        said = ", ".join(f"{outcomes.count(outcome)} {outcome.replace('_', ' ')}" for outcome in dict.fromkeys(outcomes))
        unfinished = len({row["job_id"] for row in failed if row["run_is"] == "no result yet"})
        with st.expander(f"Attempts that did not finish: {said}; {unfinished} of their runs have no result yet"):
            rows = [[*(row | {"job_id": f"runs?run={row['job_id']}"}).values()] for row in failed]
            page.show_table(list(failed[0]), rows, f"{study} failures", placeholder="-", column_config={"job_id": LINK})


def choose_cell(study: str, cells: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Show the cells as a table, and return the one chosen in it or in the URL."""
    st.subheader("Cells", anchor=False)
    recipes = st.pills(
        "Recipe", list(dict.fromkeys(c["recipe"] for c in cells)), selection_mode="multi", key="recipe", bind="query-params"
    )
    states = st.pills("State", STATES, selection_mode="multi", key="state", bind="query-params")
    shown = [c for c in cells if c["recipe"] in (recipes or [c["recipe"]]) and c["state"] in (states or [c["state"]])]
    if not shown:
        st.info("No cell is of this recipe and in this state.")
        return None
    ids, asked = [cell["cell_id"] for cell in shown], st.query_params.get("cell")
    if asked and asked not in ids:
        st.caption(f"Cell {asked} of the URL is not among these; the first is shown.")
    place = ids.index(asked) if asked in ids else 0
    name = " ".join([study, "cells", *recipes, *states])

    def choose() -> None:
        for row in st.session_state[f"{name} table"].selection.rows:
            st.query_params["cell"] = ids[row]

    page.show_table(
        COLUMNS,
        [[cell[column] for column in COLUMNS] for cell in shown],
        name,
        height=min(300, 37 + 35 * len(shown)),
        on_select=choose,
        selection_mode="single-row-required",
        selection_default={"selection": {"rows": [place]}},
        placeholder="-",
        column_config={"best_loss": LOSS, "margin": LOSS, "reason": st.column_config.TextColumn(width="large")},
    )
    return shown[place]


def show_cell(study: str, cell: dict[str, Any]) -> None:
    st.subheader(plain(f"{cell['recipe']}, D = {cell['seed_tokens']:,} tokens, {cell['size']}"), anchor=False)
    goes_on = "" if cell["search_ended_at"] else " Its search has not ended."
    st.text(f"{cell['state'].capitalize()}: {cell['reason']}.{goes_on}")
    with st.container(horizontal=True):
        if cell["run_id"]:
            st.page_link("runs.py", label=f"Best run {cell['run_id'][:8]}", query_params={"study": study, "run": cell["run_id"]})
        if cell["follows"]:
            label = f"The search it follows: {cell['follows'].removeprefix(study + '/')}"
            st.page_link("study.py", label=label, query_params={"study": study, "cell": cell["follows"]})
    points, runs = page.read(cell_search, cell["cell_id"])
    if cell["tuned"] and points:
        page.show_chart(search_chart(cell, points), f"{cell['cell_id'].replace('/', ' ')} search", points)
    if cell["val_loss_mean"] is not None:
        spread = "" if cell["val_loss_sd"] is None else f", standard deviation {cell['val_loss_sd']:.4f}"
        st.text(f"Single models at the optimum: mean {cell['val_loss_mean']:.4f} nats/token over {cell['seeds']} run(s){spread}.")
    if runs:
        hidden = {} if cell["objective"] == "K" else {"limit_in_k": None}
        page.show_table(
            list(runs[0]),
            [list(run.values()) for run in runs],
            f"{cell['cell_id'].replace('/', ' ')} runs",
            placeholder="",
            column_config={"run": LINK, "val_loss": LOSS, "limit_in_k": LOSS, **hidden},
        )


study = page.choose_study()
_, live = look(study)


@st.fragment(run_every=LOOK_SECONDS if live else None)
def standing() -> None:
    with page.show_errors():
        attempts, still = look(study)
        if bool(still) != bool(live):
            st.rerun()  # the whole page, to begin or to end looking
        show_standing(study, attempts, still)
        show_attempts(study, attempts)


@st.fragment(run_every=REDRAW_SECONDS if live else None)
def cells() -> None:
    with page.show_errors():
        if cell := choose_cell(study, page.read(progress.study_cells, study)):
            show_cell(study, cell)


standing()
cells()
