"""The answer of a study: one sentence about what was reached, what was trained, limits, and caveats.

Every number is of a view; nothing is computed here that SQL does not show. A ratio beyond the budgets of the baseline is marked
as extrapolated, and one further beyond than `FAR` times is given as that bound.
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import duckdb

from dataeff.laws.fit import NO_FREEDOM, WARNINGS
from dataeff.laws.noise import least_of
from dataeff.records.queries import query, records, require_study
from dataeff.reports.frames import Records, by_key
from dataeff.reports.judge import claim_sentences

NEIGHBOURHOOD = 7  # an optimum on three axes and the points beside it
FAR = 100  # times the baseline's largest budget: beyond it a law says nothing
COUNTS = ("", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
UNITS = "Losses in nats/token; D: distinct training tokens; N: parameters; K: members of an ensemble; intervals: 90%, of noise."

NUMBERS = """
SELECT recipe_summary.* EXCLUDE (study) FROM recipe_summary JOIN study ON study.name = study
WHERE study = $1 ORDER BY seed_tokens DESC, best_trained NULLS LAST, list_position(json_keys(spec, '$.recipes'), recipe), recipe
"""

# The laws that the numbers rest on: the baseline's over D, then those of each recipe over N or K.
LAWS = """
SELECT coalesce(law.undefined / law.resamples, 0) AS undefined, law.warnings, summary.points,
    format('{:,}', law.seed_tokens) AS tokens, if(law.low IS NULL AND law.high IS NULL, law.interval_reason, NULL) AS no_interval,
    if(quantity = 'data_law', format('The baseline''s law over D ({}), under every ratio', law.recipe),
        format('{}''s law over {}', law.recipe, if(kind = 'asymptote in K, best over N', 'K', 'N'))) AS name
FROM fit_state AS law LEFT JOIN recipe_summary AS summary USING (study, recipe, seed_tokens)
WHERE study = $1 AND (quantity = 'data_law' AND law.recipe = (SELECT baseline FROM study WHERE name = $1)
    OR quantity = 'asymptote' AND value IS NOT NULL AND kind <> 'best over N')
ORDER BY quantity <> 'data_law', law.seed_tokens DESC, law.recipe
"""

# `why` an optimum is not certified, unless it is that of the cell whose search this one follows.
CELLS = """
SELECT certificate.state, recipe, note, within_noise > 0 AS tied, format('{}, D = {:,}, {}', recipe, seed_tokens, size) AS place,
    if(run_id IS NULL, 'nothing has finished yet', if(certificate.state = 'certified' OR origin NOT IN ('', cell_id), NULL,
        coalesce(nullif(array_to_string(edges, ', '), ''), certificate.reason))) AS why
FROM certificate JOIN (SELECT cell_id, note, origin FROM cell) USING (cell_id) WHERE study = $1 ORDER BY recipe, seed_tokens, size
"""


# Recipes whose optima are estimated by runs that chose them; points that the search compared; how long each searched.
EFFORT = """
SELECT recipe, bool_or(best.selected) AS selected, median(val_loss_sd) AS noise_sd, max(cell.members) AS members,
    any_value(objective) AS objective, max(coalesce(neighbours_run, 0)) + 1 AS compared, sum(tried) AS points
FROM cell JOIN cell_limit AS best USING (cell_id, study, recipe) JOIN (SELECT cell_id, val_loss_sd FROM best_run) USING (cell_id)
    LEFT JOIN (SELECT cell_id, count(DISTINCT coordinates) AS tried FROM trial WHERE role = 'search' GROUP BY ALL) USING (cell_id)
WHERE study = $1 AND reached_loss IS NOT NULL GROUP BY recipe ORDER BY recipe
"""

VALIDATION = """SELECT median(val_loss_standard_error) FROM run
WHERE run_id IN (SELECT run_id FROM trial JOIN cell USING (cell_id) WHERE study = $1)"""


def study_answer(connection: duckdb.DuckDBPyConnection, study: str) -> dict[str, Any]:
    """Return `question`, `sentence` (about what was reached), `claims` (declared beforehand, with their verdicts), `trained` and
    `limits` (tables to read, as (columns, rows)), `caveats`, those first that decide, and `numbers`,
    (columns, rows) of the view `recipe_summary`.

    Raises `NotFoundError` for a study that is not recorded.
    """
    require_study(connection, study)
    question, baseline = connection.execute("SELECT question, baseline FROM study WHERE name = $1", [study]).fetchone()
    columns, rows = query(connection, NUMBERS, [study])
    summary = [dict(zip(columns, row, strict=True)) for row in rows]
    limits = [row for row in summary if row["kind"] != "best over N"]
    efficiency = f"data efficiency{', one draw' if _one_draw(summary) else ''}"
    return {
        "question": str(question),
        "sentence": _sentence(summary, baseline),
        "claims": claim_sentences(connection, study),
        "trained": (["recipe", "D", "loss", "model", efficiency], [_trained(row) for row in summary]),
        "limits": (["recipe", "D", "limit", efficiency, "beyond the data"], [_limit(row) for row in limits]),
        "caveats": _caveats(connection, study, summary),
        "numbers": (columns, rows),
    }


def plain(text: str) -> str:
    """Return Markdown that shows text as it is, on one line: what a study's author wrote is no markup."""
    return re.sub(r"([\\`*_{}\[\]<>$#~|!])", r"\\\1", " ".join(text.split()))


def ratio(row: dict[str, Any], name: str, digits: int = 2, what: str = "") -> str:
    """Return a data efficiency of a row of `recipe_summary` with its interval, and whether it is extrapolated."""
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    bound = FAR * row["largest_budget"] / row["seed_tokens"]
    notes = _ends(low, high, lambda end: f"over {bound:.0f}" if end > bound else f"{end:.{digits}f}")
    notes += ["extrapolated"] if row["extrapolated" if name == "data_efficiency" else "trained_extrapolated"] else []
    text = f"over {bound:.0f}x" if value > bound else f"{value:.{digits}f}x"
    return text + what + (f" ({', '.join(notes)})" if notes else "")


def _ends(low: float | None, high: float | None, text: Callable[[float], str]) -> list[str]:
    return [] if low is high is None else [f"{'?' if low is None else text(low)} to {'∞' if high is None else text(high)}"]


def _one_draw(summary: Records) -> bool:
    """Whether no recipe was estimated on two draws of the data: which D tokens they are is in no interval then."""
    return all((row["draws"] or 1) < 2 for row in summary)


def _sentence(summary: Records, baseline: str | None) -> str:
    """Say what was reached at the largest D at which there is more than the baseline."""
    done = [row for row in summary if row["best_trained"] is not None]
    if not done:
        return "No run has finished yet: there is no answer."
    tokens = next((row["seed_tokens"] for row in done if row["recipe"] != baseline), done[0]["seed_tokens"])
    best, *others = done = [row for row in done if row["seed_tokens"] == tokens]
    known = best["data_efficiency_trained"] is not None and best["recipe"] != baseline
    ties = [row["recipe"] for row in others if round(row["best_trained"] - best["best_trained"], 3) == 0]
    name = best["recipe"] + (f", tied with {', '.join(ties)}" if ties else "")

    def reached(row: dict[str, Any], what: str = "") -> str:
        return ratio(row, "data_efficiency_trained", 1, what) if known else f"{row['best_trained']:.3f} nats/token"

    verb, who = "was", f"The best single model ({name})"
    if best["members"] > 1:
        count = COUNTS[best["members"]] if best["members"] < len(COUNTS) else best["members"]
        verb, who = "were", f"{count} models together ({name})"
    parts = [f"{who} {f'{verb} worth' if known else 'reached'} {reached(best, ' the data')} at {tokens:,} tokens"]
    parts[0] += " of one draw" if known and _one_draw(summary) else ""
    single = next((row for row in done if row["members"] == 1), best)
    if single is not best:
        parts.append(f"the best single model ({single['recipe']}) {reached(single)}")
    base = next((row for row in done if row["recipe"] == baseline), best)
    if not known and base is not best and base is not single:
        parts.append(f"the baseline ({baseline}) {reached(base)}")
    text = f"{'; '.join(parts)}."
    if not others:
        return f"{text} There is no other recipe to compare it with."
    if best["recipe"] == baseline:
        return f"{text} That is the baseline: no other recipe was better."
    if not known:
        return f"{text} What that is worth in data is not known: {best['trained_reason']}."
    low = best["data_efficiency_trained_low"]
    return f"{text} That may be no gain: the interval holds 1." if low is not None and low <= 1 else text


def _trained(row: dict[str, Any]) -> tuple[str, ...]:
    loss = "-" if row["best_trained"] is None else f"{row['best_trained']:.3f}"
    model = f"{row['members']} x {row['size']}" if row["size"] else "-"
    return row["recipe"], f"{row['seed_tokens']:,}", loss, model, ratio(row, "data_efficiency_trained")


def _limit(row: dict[str, Any]) -> tuple[str, ...]:
    limit, beyond, kind = "-", [], row["kind"]
    if row["limit_loss"] is None:
        beyond = [row["reason"].removeprefix("this recipe has ").replace(" here:", ":")]
    else:
        ends = _ends(row["e_low"], row["e_high"], "{:.3f}".format)
        limit = " ".join([f"{row['limit_loss']:.3f}", *(f"({text})" for text in ends)])
        beyond += [f"K -> ∞ from {row['largest_members']}"] if " in K" in kind else []
        beyond += [f"N -> ∞ from {row['largest_parameters']:,}"] if "best over N" not in kind else []
        beyond += [f"D {row['tokens_needed'] / row['largest_budget']:.3g}x"] if row["extrapolated"] else []
        beyond += [f"{row['beyond']:+.3f} nats"] if row["beyond"] is not None else []
        beyond += [f"largest size held out {row['held_out']:+.3f}"] if row["held_out"] is not None else []
    return row["recipe"], f"{row['seed_tokens']:,}", limit, ratio(row, "data_efficiency"), ", ".join(beyond)


def _caveats(connection: duckdb.DuckDBPyConnection, study: str, summary: Records) -> list[str]:
    """Return what is doubtful, in short: the laws that the numbers rest on, the baseline's first; noise; certificates."""
    lines = ["Runs were added since the laws were fitted: `dataeff refresh`."] if any(row["stale"] for row in summary) else []
    laws = records(connection, LAWS, [study])
    for law in laws:
        names = dict.fromkeys([*law["warnings"], *([NO_FREEDOM] if law["points"] == 3 else [])])
        doubts = [WARNINGS.get(name, "its residuals are more than twice the noise") for name in names]
        doubts += [f"{law['undefined']:.0%} of its resamples show no limit"] if law["undefined"] > 0.05 else []
        law["why"] = "; ".join([*doubts, *([f"no interval: {law['no_interval']}"] if law["no_interval"] else [])])
    for (name, why), own in by_key([law for law in laws if law["why"]], "name", "why").items():
        budgets = "; ".join(filter(None, (law["tokens"] for law in own)))
        lines.append(f"{name}{f' at D = {budgets}' if budgets else ''}: {why}.")
    noise = records(connection, "SELECT * FROM noise WHERE study = $1 ORDER BY recipe", [study])
    one_seed = [row["recipe"] for row in noise if row["noise_sd"] is None]
    measured = [f"{r['recipe']} {r['noise_sd']:.4f} ({r['degrees_of_freedom']})" for r in noise if r["noise_sd"] is not None]
    lines += [f"Run-to-run noise, sd (degrees of freedom): {', '.join(measured)}."] if measured else []
    together = "One run a draw, whose interval is of seed and draw together"
    alone = "One seed only, so no interval for single models" if _one_draw(summary) else together
    lines += [f"{alone}: {', '.join(one_seed)}."] if one_seed else []
    lines += [*_draws(summary), *_selection(connection, study), *_edges(summary)]
    (error,) = connection.execute(VALIDATION, [study]).fetchone()
    lines += [f"All losses share one validation split; its standard error, {error:.3f} nats/token, is in none."] if error else []
    cells = records(connection, CELLS, [study])
    tied, states = sum(bool(cell["tied"]) for cell in cells), Counter(cell["state"] for cell in cells)
    counts = ", ".join(f"{n} {state}" for state, n in sorted(states.items(), key=lambda item: item[0] != "certified"))
    lines.append(f"Optima: {counts}{f'; {tied} tied with a neighbour within the noise' if tied else ''}.")
    doubtful = [cell for cell in cells if cell["why"]]
    doubtful += [{**cell, "state": "note", "why": cell["note"]} for cell in cells if cell["note"]]
    for (state, why), own in by_key(doubtful, "state", "why").items():
        recipes = ", ".join(f"{recipe} ({n})" for recipe, n in Counter(cell["recipe"] for cell in own).items())
        places = "; ".join(cell["place"] for cell in own) if len(own) < 4 else f"cells of {recipes}"
        lines.append(f"  {state}: {places}: {why}")
    return [*lines, UNITS]


def _draws(summary: Records) -> list[str]:
    if _one_draw(summary):
        return ["One draw of the data: which D tokens a run sees is in no interval, and may move losses by more than seeds do."]
    drawn = {row["seed_tokens"]: row["draw_sd"] for row in summary if row["draw_sd"] is not None}
    text = ", ".join(f"{sd:.4f} at D = {tokens:,}" for tokens, sd in sorted(drawn.items()))
    return [f"Draws of the data: tuned on the first, estimated on {max(row['draws'] or 1 for row in summary)} others; sd {text}."]


def _selection(connection: duckdb.DuckDBPyConnection, study: str) -> list[str]:
    """Return which recipes the runs that chose an optimum estimate, by how much that may flatter, and how long each searched."""
    rows, lines, flattered = records(connection, EFFORT, [study]), [], []
    for recipe, sd, members, objective, compared in (
        [row[name] for name in ("recipe", "noise_sd", "members", "objective", "compared")] for row in rows if row["selected"]
    ):
        by = least_of(max(compared, NEIGHBOURHOOD)) / (members if objective == "single" else members**0.5)
        flattered.append(f"{recipe} {by:.2g} sd of noise" if sd is None else f"{recipe} {by * sd:.3f}")
    if flattered:
        lines.append(f"Estimated by runs that chose the optimum, which may flatter by up to: {', '.join(flattered)} nats/token.")
    if len(rows) > 1:
        counts = ", ".join(f"{row['recipe']} {row['points'] or 0:,}" for row in rows)
        lines.append(f"Points tried: {counts}.")
    return lines


def _edges(summary: Records) -> list[str]:
    """Return where the best size is the largest that was tried: a larger one may be better, the baseline's too."""
    at_edge: dict[str, list[str]] = {}
    for row in sorted(summary, key=lambda row: row["seed_tokens"]):
        if "best over N" in row["kind"] and row["cells"] > 1 and row["parameters_total"] == row["largest_parameters"]:
            at_edge.setdefault(row["recipe"], []).append(f"{row['seed_tokens']:,}")
    places = "; ".join(f"{recipe} at D = {', '.join(tokens)}" for recipe, tokens in at_edge.items())
    return [f"Best size is the largest tried, so a larger one may be better: {places}."] if places else []
