"""The answer of a study: one table, the sentences that say what it means, and caveats.

Every number comes from the views `recipe_summary`, `best_run`, `certificate` and `noise`; nothing is computed here that SQL does
not show.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from dataeff.records.queries import query, records
from dataeff.reports.frames import Records, by_key, hold_views, study_limits

if TYPE_CHECKING:
    import duckdb

ROWS = """
SELECT recipe, seed_tokens, kind AS limit_kind, limit_loss, e_low AS limit_low, e_high AS limit_high, best_trained,
    size AS best_size, members, inference_parameters, training_flops, teacher_flops, points, certified, boundary, open,
    data_efficiency_trained, data_efficiency_trained_low, data_efficiency_trained_high, extrapolated, data_efficiency,
    data_efficiency_low, data_efficiency_high, reason
FROM recipe_summary JOIN study ON study.name = study
WHERE study = $1
ORDER BY list_position(json_keys(spec, '$.recipes'), recipe), seed_tokens
"""

# Where cells tuned for the limit in K ended, against the optimum of the recipe they build on.
TUNED_FOR_THE_LIMIT = """
SELECT tuned.recipe, base.recipe AS base, count(*) AS cells, median(tuned.epochs / base.epochs) AS epochs,
    coalesce(median(tuned.weight_decay / nullif(base.weight_decay, 0)), 1) AS weight_decay,
    count(*) FILTER (tuned.epochs / base.epochs BETWEEN 0.99 AND 4.01
        AND tuned.weight_decay BETWEEN 0.249 * base.weight_decay AND 1.01 * base.weight_decay) AS by_rule
FROM best_run AS tuned JOIN cell ON cell.cell_id = tuned.cell_id JOIN best_run AS base ON base.cell_id = cell.base
WHERE tuned.study = $1 AND objective = 'K' AND tuned.run_id IS NOT NULL
GROUP BY ALL ORDER BY ALL
"""

CERTIFICATES = """
SELECT state, recipe, seed_tokens, size, edges, certificate.reason, run_id IS NOT NULL AS begun, note,
    coalesce(within_noise > 0, false) AS tied
FROM certificate JOIN (SELECT cell_id, note FROM cell) USING (cell_id) WHERE study = $1 ORDER BY ALL
"""

UNITS = (
    "Losses are validation cross-entropy in nats per token. A limit is an asymptote in N or in K, or the best over N; trained "
    "is the least loss reached, by the best model: so many members of a size. Data efficiency is the tokens that the "
    "baseline's data law needs to reach a loss, over D. Intervals are 90%: run-to-run noise through every law of the chain, "
    "the baseline's too; not the choice of the laws' form."
)


def study_answer(connection: duckdb.DuckDBPyConnection, study: str) -> dict[str, Any]:
    """Return all that a study's answer is shown with: `table`, the columns and rows of `answer_rows`; `text`, what `answer_text`
    says; `limits`, the arguments of `limits_chart`. Raises `NotFoundError` for a study that is not recorded.
    """
    table = answer_rows(connection, study)
    return {"table": table, "text": answer_text(connection, study, *table), "limits": study_limits(connection, study)}


def answer_rows(connection: duckdb.DuckDBPyConnection, study: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return (columns, rows): one row a recipe and D. Losses in nats per token on the validation split.

    Raises `NotFoundError` for a study that is not in the database.
    """
    hold_views(connection, study)
    return query(connection, ROWS, [study])


def answer_table(columns: list[str], rows: list[tuple[Any, ...]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the rows of `answer_rows` as a table to read: losses in nats per token, numbers beside their 90% intervals."""
    table = [
        (
            record["recipe"],
            str(record["seed_tokens"]),
            bracketed(record["limit_loss"], record["limit_low"], record["limit_high"], ".3f"),
            ratio(record, "data_efficiency"),
            bracketed(record["best_trained"], None, None, ".3f"),
            ratio(record, "data_efficiency_trained"),
            f"{record['members']} x {record['best_size']}" if record["best_size"] else "-",
        )
        for record in _named(columns, rows)
    ]
    return ["recipe", "D", "limit", "efficiency (limit)", "trained", "efficiency (trained)", "best model"], table


def _named(columns: list[str], rows: list[tuple[Any, ...]]) -> Records:
    return [dict(zip(columns, row, strict=True)) for row in rows]


def plain(text: str) -> str:
    """Return Markdown that shows text as it is, on one line: what a study's author wrote is no markup."""
    return re.sub(r"([\\`*_{}\[\]<>$#~|!])", r"\\\1", " ".join(text.split()))


def bracketed(value: float | None, low: float | None, high: float | None, form: str) -> str:
    """Return a number beside its interval, whose upper end may be missing."""
    if value is None:
        return "-"
    upper = "∞" if high is None else f"{high:{form}}" if high < 1e4 else f"{high:.2g}"
    return f"{value:{form}}" + ("" if low is None and high is None else f" [{'?' if low is None else f'{low:{form}}'}, {upper}]")


def ratio(record: dict[str, Any], name: str) -> str:
    """Return a data efficiency beside its interval."""
    return bracketed(record[name], record[f"{name}_low"], record[f"{name}_high"], ".2f")


def answer_text(
    connection: duckdb.DuckDBPyConnection, study: str, columns: list[str], rows: list[tuple[Any, ...]]
) -> tuple[str, list[str], list[str]]:
    """Return the study's question, what `answer_rows` gave in sentences: the data efficiency of each recipe at the largest D, and
    the caveats. A sentence that begins with two spaces is an item of the one before it.
    """
    summary = _named(columns, rows)
    question, baseline = connection.execute("SELECT question, baseline FROM study WHERE name = $1", [study]).fetchone()
    largest = max((record["seed_tokens"] for record in summary), default=None)
    at_largest = {record["recipe"]: record for record in summary if record["seed_tokens"] == largest}
    lines = []
    if base := at_largest.pop(baseline, None):
        lines.append(f"At D = {largest:,} seed tokens, {baseline} reaches {_loss(base)}. By its law over D:")
    lines += [_efficiency(record) for record in at_largest.values() if record["limit_loss"] is not None]
    lacking = [
        {"lack": "limit" if r["limit_loss"] is None else "data efficiency",
         "why": r["reason"].removeprefix("this recipe has no limit here: "), **r}
        for r in summary if r["reason"]
    ]  # fmt: skip
    for (lack, recipe, why), at in by_key(lacking, "lack", "recipe", "why").items():
        lines.append(f"No {lack} for {recipe} at D = {budgets(at)}: {why}.")
    for recipe, base, count, epochs, decay, by_rule in connection.execute(TUNED_FOR_THE_LIMIT, [study]).fetchall():
        lines.append(
            f"{recipe}, tuned for its limit in K, ends at {epochs:.3g}x the epochs and {decay:.3g}x the weight decay of {base}'s "
            f"optimum (medians of {count} cells); the rule of twice and half is within a factor of two of {by_rule} of them."
        )
    return str(question), lines, _caveats(connection, study, summary)


def budgets(rows: Records) -> str:
    """Return the D of rows, to read."""
    return "; ".join(f"{row['seed_tokens']:,}" for row in rows)


def _loss(record: dict[str, Any]) -> str:
    if record["limit_loss"] is None:
        return "no limit"
    interval = ""
    if record["limit_low"] is not None:
        interval = f", 90% interval {record['limit_low']:.3f} to {record['limit_high']:.3f}"
    return f"{record['limit_loss']:.3f} nats/token ({record['limit_kind']}{interval})"


def _efficiency(record: dict[str, Any]) -> str:
    text = f"  {record['recipe']}: {_loss(record)}"
    if record["data_efficiency"] is not None:
        interval = ""
        if record["data_efficiency_low"] is not None:
            high = record["data_efficiency_high"]
            interval = f" ({record['data_efficiency_low']:.2g} to {'unbounded' if high is None else f'{high:.2g}'})"
        text += f", efficiency {record['data_efficiency']:.3g}x{interval}{', extrapolated' if record['extrapolated'] else ''}"
    if record["data_efficiency_trained"] is not None:
        text += f"; trained: {record['best_trained']:.3f}, {record['data_efficiency_trained']:.3g}x"
    return text + "."


def _caveats(connection: duckdb.DuckDBPyConnection, study: str, summary: Records) -> list[str]:
    """Say how sure this is: noise, certificates, degrees of freedom."""
    noise = records(connection, "SELECT * FROM noise WHERE study = $1 ORDER BY recipe", [study])
    estimated = [row for row in noise if row["noise_sd"] is not None]
    measured = ", ".join(f"{row['recipe']} {row['noise_sd']:.4f} ({row['degrees_of_freedom']})" for row in estimated)
    without = [row["recipe"] for row in noise if row["noise_sd"] is None]
    lines = []
    if measured:
        lines.append(f"Run-to-run noise, sd in nats/token (degrees of freedom, from runs under other seeds): {measured}.")
    if without:
        lines.append(f"Of {', '.join(without)} no point was run with more than one seed: single models' limits have no interval.")
    cells = records(connection, CERTIFICATES, [study])
    states = Counter(cell["state"] for cell in cells)
    tied = sum(cell["tied"] for cell in cells)
    noisy = f"; {tied} are tied with a neighbour within the run-to-run noise" if tied else ""
    counts = ", ".join(f"{states[state]} {state}" for state in ("certified", "boundary", "open") if states[state])
    lines.append(f"Optima: {counts}{noisy}.")
    if waiting := Counter(cell["recipe"] for cell in cells if cell["state"] == "open" and not cell["begun"]):
        lines.append(f"  nothing has finished yet in cells of {', '.join(f'{recipe} ({n})' for recipe, n in waiting.items())}")
    for cell in cells:
        where = f"{cell['recipe']}, D = {cell['seed_tokens']:,}, {cell['size']}"
        if cell["state"] != "certified" and cell["begun"]:
            lines.append(f"  {cell['state']}: {where}: {', '.join(cell['edges'] or ()) or cell['reason']}")
        if cell["note"]:
            lines.append(f"  note: {where}: {cell['note']}")
    in_size = [r["recipe"] for r in summary if r["points"] == 3 and r["limit_kind"] in ("asymptote", "asymptote in K, then N")]
    for recipe in dict.fromkeys(in_size):
        lines.append(
            f"The law over N of {recipe} has 3 points and 3 parameters: it passes through them, and nothing tests its form."
        )
    return [*lines, UNITS]
