"""The Study page: how a study stands, its cells, and how the search walked the grid of one of them.

How it stands is looked up again every few seconds while something is under way, and only then; the rest when the file is written.
"""

from __future__ import annotations

import time
from typing import Any

import page
import streamlit as st

from dataeff.records.queries import records
from dataeff.reports import progress, search
from dataeff.reports.text import duration

LOOK_SECONDS, FRESH_SECONDS = 5, 60  # a file written so lately is one that a study writes to
COLUMNS = ["recipe", "seed_tokens", "size", "state", "best_loss", "margin", "lr", "weight_decay", "epochs", "runs", "diverged",
           "objective", "reason"]  # fmt: skip
LOSS = st.column_config.NumberColumn(format="%.4f", help="nats/token")


def look() -> tuple[list[dict[str, Any]], bool]:
    """Return the unfinished attempts, and whether to look again: one is under way, or the file was written just now."""
    with page.database.read() as connection:
        attempts = progress.under_way(connection)
    return attempts, any(attempt["live"] for attempt in attempts) or time.time() - page.written() < FRESH_SECONDS


def show_standing(study: str, attempts: list[dict[str, Any]], live: bool) -> None:
    counts, at_once = page.read(progress.standing, study), sum(attempt["live"] for attempt in attempts)
    shown = {"certified": f"{counts['certified']:,} of {counts['cells']:,}"}
    shown |= {name: f"{counts[name]:,}" for name in ("boundary", "open", "runs", "diverged")} | {"under way": f"{at_once:,}"}
    with st.container(horizontal=True, gap="large"):
        for name, count in shown.items():
            st.metric(name, count, width="content")
    left = f"About {counts['runs_left']:,} runs are left" if counts["flops_left"] else "No run is left"
    if counts["flops_left"] and counts["seconds_left"] is not None:
        left += f": {duration(counts['seconds_left'] / max(1, at_once))} with {max(1, at_once)} at once"
    left += f"; what {counts['unknown']} imported cells lack is not known" if counts["unknown"] else ""
    again = f"again every {LOOK_SECONDS} s" if live else "nothing is under way"
    ended = f"{counts['searches_ended']:,} of {counts['cells']:,} searches have ended"
    st.caption(f"{ended}. {left}. Looked at {time.strftime('%H:%M:%S')}, {again}.")


def show_attempts(study: str, attempts: list[dict[str, Any]]) -> None:
    if attempts:
        with st.expander(f"Unfinished attempts: {len(attempts)}", expanded=True):
            page.show_records(attempts, f"{study} under way", column_config={"alive": None, "live": None})
    if failed := page.read(records, progress.FAILURES, [study]):
        outcomes = [row["outcome"].replace("_", " ") for row in failed]
        counted = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes))
        lacking = len({row["run_id"] for row in failed if row["run_is"] == "no result yet"})
        with st.expander(f"Failed attempts: {counted}; {lacking} of their runs have no result yet"):
            page.show_records(failed, f"{study} failures")


def choose_cell(study: str, cells: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Show the cells as a table, and return the one chosen in it or in the URL."""
    shown = cells
    for name in ("recipe", "state"):
        options = list(dict.fromkeys(cell[name] for cell in cells))
        chosen = page.choose(name.capitalize(), options, name, st.pills, selection_mode="multi", label_visibility="collapsed")
        shown = [cell for cell in shown if cell[name] in (chosen or options)]
    asked = page.url.get("cell")
    if asked != page.state.get("clicked cell"):
        page.state["linked cell"] = asked  # comes first, so that it is in sight
    shown = sorted(shown, key=lambda cell: cell["cell_id"] != page.state.get("linked cell"))
    ids = [cell["cell_id"] for cell in shown]
    if not shown or (asked and asked not in ids):
        st.caption("The cell of the URL is not among these." if shown else "No cell is of this recipe and in this state.")
    if not shown:
        return None
    place, name = ids.index(asked) if asked in ids else 0, f"{study} {len(ids)} cells from {ids[0]}"

    def choose() -> None:
        clicked = page.state[f"{name} table"].selection
        page.state["clicked cell"] = ids[clicked.cells[0][0] if clicked.cells else clicked.rows[0]]
        page.put("cell", page.state["clicked cell"])

    mode, height = ["single-row-required", "single-cell"], min(300, 37 + 35 * len(shown))
    config = {"best_loss": LOSS, "margin": LOSS, "reason": st.column_config.TextColumn(width="large")}
    rows = [[cell[column] for column in COLUMNS] for cell in shown]
    page.show_table(
        COLUMNS, rows, name, height=height, on_select=choose, selection_mode=mode, selected=[place], column_config=config
    )
    return shown[place]


def show_cell(study: str, cell: dict[str, Any]) -> None:
    st.subheader(page.plain(f"{cell['recipe']}, D = {cell['seed_tokens']:,} tokens, {cell['size']}"), anchor=False)
    text = f"{cell['state'].capitalize()}: {cell['reason']}.{'' if cell['search_ended_at'] else ' Its search has not ended.'}"
    if cell["val_loss_mean"] is not None:
        spread = "" if cell["val_loss_sd"] is None else f", standard deviation {cell['val_loss_sd']:.4f}"
        text += f" Single models at the optimum: {cell['val_loss_mean']:.4f} nats/token, mean of {cell['seeds']}{spread}."
    st.markdown(page.plain(text))
    with st.container(horizontal=True):
        if run := cell["run_id"]:
            st.page_link("runs.py", label=f"Best run {run[:8]}", query_params={"study": study, "run": run})
        if cell["follows"]:
            label = f"The search it follows: {cell['follows'].split('/', 1)[1]}"
            st.page_link("study.py", label=label, query_params={"study": study, "cell": cell["follows"]})
    found, name = page.read(search.cell_search, cell["cell_id"]), cell["cell_id"].replace("/", " ")
    if cell["tuned"] and found["points"]:
        show_search(cell, found, name)
    if found["runs"]:
        config = {"val_loss": LOSS, "limit_in_k": LOSS if cell["objective"] == "K" else None}
        page.show_records(found["runs"], f"{name} runs", column_config=config)


def show_search(cell: dict[str, Any], found: dict[str, Any], name: str) -> None:
    points, value = found["points"], "loss"
    if cell["objective"] == "K":
        texts = {"loss": f"limit of {cell['members']} models", "single": "mean of single models"}
        value = page.choose("Value", list(texts), "value", st.segmented_control, format_func=texts.get, required=True)
    note = "Outlined: the best. Numbers: order of the search. \u00d7: diverged. ?: neighbour of the optimum that was not run."
    note += f" Bar: edge of the grid ({', '.join(cell['edges'])})." if cell["edges"] else ""
    shares = [f"{share['axis'].replace('_', ' ')} {share['importance']:.0%}" for share in found["importances"]]
    important = f" Importance (PED-ANOVA, of the points of this walk): {', '.join(shares)}." if shares else ""
    page.show_chart(search.search_chart(cell["tuned"], points, value), f"{name} search", points)
    st.caption(note)
    page.show_chart(search.history_chart(points), f"{name} history", points)
    st.caption(f"Line: best so far.{important}")


study = page.choose_study()
_, live = look()


@st.fragment(run_every=LOOK_SECONDS if live else None)
def standing() -> None:
    with page.show_errors():
        attempts, still = look()
        if still != live:
            st.rerun()  # the whole page, to begin or to end looking
        show_standing(study, attempts, still)
        show_attempts(study, attempts)


standing()
page.show_notes(f"study {study}")
if chosen := choose_cell(study, page.read(progress.study_cells, study)):
    show_cell(study, chosen)
