"""The answer of a study: one table and the sentences that say what it means, with its doubt.

Every number comes from the views `asymptote`, `data_law`, `data_efficiency`, `best_run`, `certificate` and `noise`;
nothing is computed here that SQL does not show.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from dataeff.records.queries import hold_views, query

if TYPE_CHECKING:
    import duckdb

ROWS = """
SELECT summary.recipe, summary.seed_tokens, summary.kind AS limit_kind, summary.limit_loss,
    summary.e_low AS limit_low, summary.e_high AS limit_high, summary.best_trained, summary.size AS best_size, summary.members,
    summary.inference_parameters, summary.training_flops, summary.teacher_flops, summary.points, summary.certified,
    summary.boundary, summary.open, summary.data_efficiency_trained, data_efficiency_trained_low, data_efficiency_trained_high,
    summary.extrapolated, summary.data_efficiency,
    summary.data_efficiency_low, summary.data_efficiency_high, summary.reason
FROM recipe_summary AS summary JOIN study ON study.name = summary.study
WHERE summary.study = $1
ORDER BY list_position(json_keys(study.spec, '$.recipes'), summary.recipe), summary.seed_tokens
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


def answer_rows(connection: duckdb.DuckDBPyConnection, study: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return (columns, rows): one row a recipe and D. Losses in nats per token on the validation split.

    Raises `NotFoundError` for a study that is not in the database.
    """
    hold_views(connection, study)
    return query(connection, ROWS, [study])


def answer_table(columns: list[str], rows: list[tuple[Any, ...]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the rows of `answer_rows` as a table to read: losses in nats per token, numbers beside their 90% intervals."""
    table = []
    for record in (dict(zip(columns, row, strict=True)) for row in rows):
        table.append(
            (
                record["recipe"],
                str(record["seed_tokens"]),
                bracketed(record["limit_loss"], record["limit_low"], record["limit_high"], ".3f"),
                bracketed(record["data_efficiency"], record["data_efficiency_low"], record["data_efficiency_high"], ".2f"),
                bracketed(record["best_trained"], None, None, ".3f"),
                bracketed(
                    record["data_efficiency_trained"],
                    record["data_efficiency_trained_low"],
                    record["data_efficiency_trained_high"],
                    ".2f",
                ),
                f"{record['members']} x {record['best_size']}" if record["best_size"] else "-",
            )
        )
    return ["recipe", "D", "limit", "limit worth", "trained", "worth", "by"], table


def plain(text: str) -> str:
    """Return Markdown that shows text as it is, on one line: what a study's author wrote is no markup."""
    return re.sub(r"([\\`*_{}\[\]<>$#~|!])", r"\\\1", " ".join(text.split()))


def bracketed(value: float | None, low: float | None, high: float | None, form: str) -> str:
    """Return a number beside its interval, whose upper end may be missing."""
    if value is None:
        return "-"
    upper = "∞" if high is None else f"{high:{form}}" if high < 1e4 else f"{high:.2g}"
    return f"{value:{form}}" + ("" if low is None and high is None else f" [{'?' if low is None else f'{low:{form}}'}, {upper}]")


def answer_text(
    connection: duckdb.DuckDBPyConnection, study: str, columns: list[str], rows: list[tuple[Any, ...]]
) -> tuple[str, list[str], list[str]]:
    """Return the study's question, and what `answer_rows` found in sentences: what each recipe is worth at the largest D, and
    what is in doubt. A sentence that begins with two spaces is an item of the one before it.
    """
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    question, baseline = connection.execute("SELECT question, baseline FROM study WHERE name = $1", [study]).fetchone()
    lines = []
    largest = max((record["seed_tokens"] for record in records), default=None)
    base = next((r for r in records if r["recipe"] == baseline and r["seed_tokens"] == largest), None)
    if base is not None:
        lines.append(f"At D = {largest:,} seed tokens, {baseline} reaches {_loss(base)}. By its law over D:")
    for record in records:
        if record["seed_tokens"] == largest and record["recipe"] != baseline and record["limit_loss"] is not None:
            lines.append(_worth(record))
    missing: dict[tuple[str, str, str], list[str]] = {}
    for record in records:
        if record["reason"]:
            lacks = "limit" if record["limit_loss"] is None else "data efficiency"
            reason = record["reason"].removeprefix("this recipe has no limit here: ")
            missing.setdefault((lacks, record["recipe"], reason), []).append(f"{record['seed_tokens']:,}")
    for (lacks, recipe, reason), at in missing.items():
        lines.append(f"No {lacks} for {recipe} at D = {'; '.join(at)}: {reason}.")
    for recipe, base, count, epochs, decay, by_rule in connection.execute(TUNED_FOR_THE_LIMIT, [study]).fetchall():
        lines.append(
            f"{recipe}, tuned for its limit in K, ends at {epochs:.3g}x the epochs and {decay:.3g}x the weight decay of {base}'s "
            f"optimum (medians of {count} cells); the rule of twice and half is within a factor of two of {by_rule} of them."
        )
    return str(question), lines, _doubts(connection, study, records)


def _loss(record: dict[str, Any]) -> str:
    if record["limit_loss"] is None:
        return "no limit"
    interval = ""
    if record["limit_low"] is not None:
        interval = f", 90% interval {record['limit_low']:.3f} to {record['limit_high']:.3f}"
    return f"{record['limit_loss']:.3f} nats/token ({record['limit_kind']}{interval})"


def _worth(record: dict[str, Any]) -> str:
    said = f"  {record['recipe']}: {_loss(record)}"
    if record["data_efficiency"] is not None:
        interval = ""
        if record["data_efficiency_low"] is not None:
            high = record["data_efficiency_high"]
            interval = f" ({record['data_efficiency_low']:.2g} to {'unbounded' if high is None else f'{high:.2g}'})"
        beyond = ", read off beyond the budgets it was fitted to" if record["extrapolated"] else ""
        said += f", worth {record['data_efficiency']:.3g}x{interval} the data{beyond}"
    if record["data_efficiency_trained"] is not None:
        said += f"; reached: {record['best_trained']:.3f}, {record['data_efficiency_trained']:.3g}x"
    return said + "."


def _doubts(connection: duckdb.DuckDBPyConnection, study: str, records: list[dict[str, Any]]) -> list[str]:
    """Say how sure this is: noise, certificates, degrees of freedom."""
    noise = connection.execute(
        "SELECT recipe, noise_sd, degrees_of_freedom FROM noise WHERE study = $1 ORDER BY recipe", [study]
    ).fetchall()
    known = [f"{recipe} {sd:.4f} ({freedom})" for recipe, sd, freedom in noise if sd is not None]
    unknown = [recipe for recipe, sd, _ in noise if sd is None]
    lines = []
    if known:
        lines.append(f"Run-to-run noise, sd in nats/token (degrees of freedom, from runs under other seeds): {', '.join(known)}.")
    if unknown:
        lines.append(f"Of {', '.join(unknown)} no point was run with more than one seed: single models' limits have no interval.")
    cells = connection.execute(
        """SELECT state, recipe, seed_tokens, size, edges, certificate.reason, run_id IS NOT NULL, note,
               coalesce(within_noise > 0, false)
           FROM certificate JOIN (SELECT cell_id, note FROM cell) USING (cell_id) WHERE study = $1 ORDER BY ALL""",
        [study],
    ).fetchall()
    states = [cell[0] for cell in cells]
    tied = sum(cell[-1] for cell in cells)
    noisy = f"; {tied} are tied with a neighbour within the run-to-run noise" if tied else ""
    lines.append(
        f"Optima: {', '.join(f'{states.count(s)} {s}' for s in ('certified', 'boundary', 'open') if s in states)}{noisy}."
    )
    if waiting := Counter(recipe for state, recipe, *_, begun, _, _ in cells if state == "open" and not begun):
        lines.append(f"  nothing has finished yet in cells of {', '.join(f'{recipe} ({n})' for recipe, n in waiting.items())}")
    for state, recipe, seed_tokens, size, edges, reason, begun, note, _ in cells:
        where = f"{recipe}, D = {seed_tokens:,}, {size}"
        if state != "certified" and begun:
            lines.append(f"  {state}: {where}: {', '.join(edges or ()) or reason}")
        if note:
            lines.append(f"  note: {where}: {note}")
    in_size = [r["recipe"] for r in records if r["points"] == 3 and r["limit_kind"] in ("asymptote", "asymptote in K, then N")]
    for recipe in dict.fromkeys(in_size):
        lines.append(
            f"The law over N of {recipe} has 3 points and 3 parameters: it passes through them, and nothing tests its form."
        )
    lines.append(
        "Losses are validation cross-entropy in nats per token. A limit is an asymptote in N or in K, or the best over N, as said"
        " above; trained is the least that was reached, by so many members of the size named. What each is worth is its data"
        " efficiency: the tokens that the baseline's data law needs to reach it, over D. Intervals are 90%: run-to-run noise"
        " through every law of the chain, the baseline's too; not the choice of the laws' form."
    )
    return lines
