"""The Study page: how a study stands, its cells, and how the search walked the grid of one of them."""

import time
from typing import Any

import page
import streamlit as st

from dataeff.facts.store import Store
from dataeff.records.queries import recorded_ids, records
from dataeff.reports import progress, search
from dataeff.reports.text import duration

COLUMNS = ["recipe", "seed_tokens", "size", "state", "best_loss", "margin", "lr", "weight_decay", "epochs", "runs", "diverged",
           "objective", "reason"]  # fmt: skip
LOSSES = dict.fromkeys(("best_loss", "margin", "val_loss", "limit_in_k"), st.column_config.NumberColumn(format="%.4f"))
MARKS = "Outlined: the best. Numbers: order of the search. \u00d7: diverged. ?: neighbour of the optimum that was not run."


def show_standing(study: str, attempts: list[dict[str, Any]]) -> None:
    (counts,), at_once = page.read(records, progress.STANDING, [study]), sum(attempt["live"] for attempt in attempts)
    counts |= {"certified": f"{counts['certified']:,} of {counts['cells']:,}", "under way": at_once}
    with st.container(horizontal=True, gap="large"):
        for name in ("certified", "boundary", "open", "runs", "diverged", "under way"):
            st.metric(name, counts[name], width="content", format="localized")
    left = f"About {counts['runs_left']:,} runs are left" if counts["flops_left"] else "No run is left"
    if counts["flops_left"] and counts["seconds_left"] is not None:
        left += f": {duration(counts['seconds_left'] / max(1, at_once))} with {max(1, at_once)} at once"
    left += f"; what {counts['unknown']} imported cells lack is not known" if counts["unknown"] else ""
    ended = f"{counts['searches_ended']:,} of {counts['cells']:,} searches have ended"
    st.caption(f"{ended}. {left}. Looked at {time.strftime('%H:%M:%S')}.")
    failed = page.read(records, progress.FAILURES, [study])
    outcomes = [row["outcome"].replace("_", " ") for row in failed]
    counted = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes))
    lacking = len({row["run_id"] for row in failed if row["run_is"] == "no result yet"})
    titles = f"Unfinished attempts: {len(attempts)}", f"Failed attempts: {counted}; {lacking} of their runs have no result yet"
    for title, rows in zip(titles, (attempts, failed), strict=True):
        if rows:
            with st.expander(title):
                page.show_records(rows, f"{study} {title[:6]}", column_config={"alive": None, "live": None})


def choose_cell(study: str, shown: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Show the cells as a table, and return the one chosen in it or in the URL, which comes first unless chosen here."""
    for name in ("recipe", "state"):
        options = list(dict.fromkeys(cell[name] for cell in shown))
        chosen = page.choose(name, options, name, st.pills, selection_mode="multi", label_visibility="collapsed")
        shown = [cell for cell in shown if cell[name] in (chosen or options)]
    asked = page.url.get("cell")
    if asked != page.state.get("clicked cell"):
        page.state["linked cell"] = asked
    shown.sort(key=lambda cell: cell["cell_id"] != page.state.get("linked cell"))
    ids = [cell["cell_id"] for cell in shown]
    if asked and asked not in ids:
        st.caption(f"Cell {page.plain(asked)} is not among these.")
    name, place = f"{study} {len(ids)} cells from {ids[0]}", ids.index(asked) if asked in ids else 0

    def choose() -> None:
        clicked = page.state[f"{name} table"].selection
        page.state["clicked cell"] = ids[clicked.cells[0][0] if clicked.cells else clicked.rows[0]]
        page.put("cell", page.state["clicked cell"])

    look = {"height": min(300, 37 + 35 * len(shown)), "column_order": COLUMNS, "column_config": LOSSES}
    mode = ["single-row-required", "single-cell"]
    page.show_records(shown, name, on_select=choose, selected=[place], selection_mode=mode, **look)
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
    points, tuned_for_k, value = found["points"], cell["objective"] == "K", "loss"
    if cell["tuned"] and points:
        if tuned_for_k:
            texts = {"loss": f"limit of {cell['members']} models", "single": "mean of single models"}
            value = page.choose("Value", list(texts), "value", st.segmented_control, format_func=texts.get, required=True)
        page.show_chart(search.search_chart(cell["tuned"], points, value), f"{name} search", points)
        st.caption(MARKS + (f" Bar: edge of the grid ({', '.join(cell['edges'])})." if cell["edges"] else ""))
        page.show_chart(search.history_chart(points), f"{name} history", points)
        shares = ", ".join(f"{share['axis'].replace('_', ' ')} {share['importance']:.0%}" for share in found["importances"])
        st.caption("Line: best so far." + (f" Importance (PED-ANOVA of the points of this walk): {shares}." if shares else ""))
    if noisy := page.read(records, search.PERTURBATION, [cell["cell_id"]]):
        page.show_records(noisy, f"{name} noise", column_config=LOSSES)
        st.caption("Loss after Gaussian noise on the weights, gamma times that of the initialisation (arXiv 2503.19206).")
    if found["runs"]:
        page.show_records(found["runs"], f"{name} runs", column_config=LOSSES if tuned_for_k else LOSSES | {"limit_in_k": None})


study = page.choose_study()
attempts = progress.under_way(Store.beside(page.database.path), page.read(recorded_ids))
page.state.live = any(attempt["live"] for attempt in attempts)
show_standing(study, attempts)
page.show_notes(f"study {study}")
if cells := page.read(records, progress.CELLS, [study]):
    show_cell(study, choose_cell(study, cells))
