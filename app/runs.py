"""The Runs page: the runs that choices leave, their curves side by side, what good ones have in common; and one run."""

from __future__ import annotations

import json
import math
from urllib.parse import urlencode
from zlib import crc32

import page
import streamlit as st

from dataeff.records import queries
from dataeff.reports import runs

SHOWN = ["val_loss", "recipes", "seed_tokens", "sizes", "lr", "weight_decay", "epochs", "train_seed", "status", "wall_seconds"]
MOST_COMPARED = 20
URL = {"bind": "query-params"}


def show(columns: list[str], rows: list[tuple], name: str, **options: object) -> None:
    """Show a table of runs: their ids as links, numbers as numbers, '-' for what is not known."""
    kinds = {column: {type(value) for row in rows if (value := row[i]) is not None} for i, column in enumerate(columns)}
    forms = {int: st.column_config.NumberColumn(format="localized"), float: st.column_config.NumberColumn(format="%.5g")}
    config = {column: forms[kind.pop()] for column, kind in kinds.items() if len(kind) == 1 and kind <= set(forms)}
    config["difference"] = st.column_config.NumberColumn(format="%+.4f", help="from this run's loss (nats/token)")
    config["cell"] = st.column_config.LinkColumn(display_text=r"cell=(.*)", help="opens the page of the study")
    config["run"] = st.column_config.LinkColumn(display_text=r"run=(.{1,8})", width=90, help="opens the page of the run")
    page.show_table(columns, rows, name, column_config=config, placeholder="-", **options)


def to(run_id: str | None) -> str | None:
    return f"runs?run={run_id}" if run_id else None


def choose() -> str:
    """Return the SQL of the runs to show."""
    everything = st.sidebar.toggle("Runs of all studies", key="everything", **URL)
    study = None if everything or not page.read(queries.studies)[1] else page.choose_study()
    there = page.read(runs.facets, study)
    chosen = {
        name: st.sidebar.multiselect(title, there[name], key=key, **URL)
        for name, title, key in (
            ("recipes", "Recipe", "recipe"),
            ("seed_tokens", "D (tokens)", "D"),
            ("sizes", "Size", "size"),
            ("status", "Status", "status"),
        )
    }
    condition = st.text_input("Condition in SQL", key="where", placeholder="lr < 0.01 and epochs >= 8", **URL).strip()
    return runs.matching(study, **chosen, ids=page.ask(runs.ids_where, study, condition) if condition else None)


def show_table(found: str, chosen: list[str]) -> None:
    """Show a page of the runs; those ticked in it join, or leave, the chosen ones."""
    columns = page.read(runs.run_columns)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        sort = st.selectbox("Sort by", list(columns), index=list(columns).index("val_loss"), key="sort", width=220, **URL)
        descending = st.toggle("Downwards", key="descending", **URL)
        most = st.selectbox("Rows", [100, 1000, 10_000], index=1, key="rows", width=110, **URL)
        shown = st.multiselect("Columns", list(columns), SHOWN, key="column", **URL)
    matching = page.read(queries.query, runs.count_query(found))[1][0][0]
    pages = max(1, math.ceil(matching / most))
    above = st.container()
    number = st.pagination(pages, key="page", **URL) if pages > 1 else 1
    first = (number - 1) * most
    names, rows = page.read(queries.query, runs.table_query(found, ["run_id", *shown], sort, descending, most, first))
    which = "all" if pages == 1 else f"the first {len(rows):,}" if number == 1 else f"{first + 1:,} to {first + len(rows):,}"
    above.caption(f"{matching:,} runs match; {which} are shown. Tick rows to compare their curves.")
    ids = [row[0] for row in rows]
    turn = st.session_state.get("turn", 0)
    view = f"runs {crc32(f'{found} {sort} {descending} {most} {number} {turn}'.encode()):08x}"  # another view, other ticks

    def compare() -> None:
        ticked = [ids[i] for i in st.session_state[f"{view} table"].selection.rows]
        st.session_state.runs = [*(r for r in chosen if r not in ids or r in ticked), *(r for r in ticked if r not in chosen)]

    with above:
        show(
            ["run", *names],
            [(to(row[0]), *row) for row in rows],
            view,
            column_order=["run", *shown],
            on_select=compare,
            selection_default={"selection": {"rows": [i for i, run_id in enumerate(ids) if run_id in chosen]}},
        )


def show_curves(chosen: list[dict], alone: bool = False) -> None:
    """Draw the curves of the runs with a choice of what, against what, how."""
    ids = [run["run_id"] for run in chosen]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        drawn = st.multiselect("Curves", list(runs.QUANTITIES), ["train_loss", "val_loss"], key="curve", **URL)
        across = st.selectbox("Against", list(runs.ACROSS), key="against", width=120, **URL)
        smoothing = st.slider("Smoothing: mean over % of a run", 0.0, 20.0, 0.0, 0.5, key="smoothing", width=260, **URL)
        log_x = st.toggle("Log x", key="logx", **URL)
        log_y = st.toggle("Log y", key="logy", **URL)
    points = page.read(runs.curves, tuple(ids), tuple(drawn), across, smoothing, log_x, log_y)
    if any(point["x"] is not None for point in points):
        chart = runs.curves_chart(points, runs.labels(chosen), across, log_x, log_y, page.dark())
        page.show_chart(chart, f"curves {ids[0]}" if alone else "curves", points)
    for line in runs.curves_note(points, ids, drawn, across):
        st.caption(line)


def choose_runs() -> list[dict]:
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


def show_comparison(chosen: list[dict]) -> None:
    if len(chosen) > MOST_COMPARED:
        st.warning(f"The first {MOST_COMPARED} of {len(chosen)} chosen runs are drawn: more cannot be told apart.")
    if chosen := chosen[:MOST_COMPARED]:
        names = ["val_loss", "val_loss_standard_error", "train_loss", *runs.differing(chosen), "training_flops", "wall_seconds"]
        rows = [(to(run["run_id"]), *(run[name] for name in names)) for run in chosen]
        show(["run", *names], rows, "chosen runs")
        show_curves(chosen)


def show_parallel(found: str) -> None:
    st.subheader("What good runs have in common", anchor=False)
    if lines := page.read(queries.records, runs.parallel_query(found)):
        page.show_chart(runs.parallel_chart(lines, page.dark()), "parallel coordinates", lines)
        for line in runs.parallel_note(lines):
            st.caption(line)


def show_run(given: str) -> None:
    found = page.read(queries.run_details, given)
    run, run_id = found["run"], found["run"]["run_id"]
    st.sidebar.button("All runs", on_click=lambda: st.session_state.update(run=""))
    st.header(f"Run {run_id}", anchor=False)
    for (head, facts), column in zip(runs.run_facts(run).items(), st.columns(4), strict=True):
        column.markdown(f"**{head}**")
        column.text("\n".join(f"{name}: {value}" for name, value in facts.items()))
    with st.expander("Spec"):
        st.json(json.loads(run.get("spec") or "{}"))
    show_rows("Attempts", found["attempts"], f"attempts of {run_id}", "None is recorded: imported results hold none.")
    st.subheader("Curve", anchor=False)
    show_curves([run], alone=True)
    cells = [{"cell": f"study?{urlencode({'study': cell.pop('study'), 'cell': cell.pop('cell_id')}, safe='/')}", **cell}
             for cell in map(dict, found["cells"])]  # fmt: skip
    show_rows("Where it is used", cells, f"cells of {run_id}", "In no cell of a study.")
    near = [{"run": to(row.pop("run_id")), **row} for row in map(dict, page.read(runs.neighbours, run_id))]
    show_rows("Neighbours: one grid step away", near, f"neighbours of {run_id}", "No search of a cell tried this run.")


def show_rows(title: str, rows: list[dict], name: str, otherwise: str) -> None:
    st.subheader(title, anchor=False)
    if rows:
        show(list(rows[0]), [tuple(row.values()) for row in rows], name)
    else:
        st.caption(otherwise)


if given := st.sidebar.text_input("Open run", key="run", placeholder="its id, or the beginning", **URL).strip():
    show_run(given)
else:
    found = choose()
    above = st.container()
    st.subheader("Curves of chosen runs", anchor=False)
    chosen = choose_runs()
    with above:
        show_table(found, [run["run_id"] for run in chosen])
    show_comparison(chosen)
    show_parallel(found)
