"""The answer of a study: one sentence about what was reached, what was trained, limits, and caveats.

Every number comes from the views `recipe_summary`, `fit_state`, `certificate` and `noise`; nothing is computed here that SQL does
not show. A ratio beyond the budgets of the baseline is marked as extrapolated; one further beyond than `FAR` times is not given.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from dataeff.records.queries import query, records, require_study
from dataeff.reports.frames import Records, by_key

if TYPE_CHECKING:
    import duckdb

FAR = 100  # times the baseline's largest budget: beyond it a law says nothing
WORDS = ("", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")

NUMBERS = """
SELECT recipe_summary.* EXCLUDE (study) FROM recipe_summary JOIN study ON study.name = study
WHERE study = $1 ORDER BY seed_tokens DESC, best_trained NULLS LAST, list_position(json_keys(spec, '$.recipes'), recipe), recipe
"""

# The laws that the numbers rest on: the baseline's over D, then those over N of each recipe.
LAWS = """
SELECT recipe, seed_tokens, points, undefined, resamples, warnings, value, stale
FROM fit_state JOIN study ON study.name = study
WHERE study = $1 AND points > 0 AND (quantity = 'data_law' AND recipe = baseline OR quantity = 'asymptote' AND value IS NOT NULL)
ORDER BY quantity <> 'data_law', seed_tokens DESC, recipe
"""

CERTIFICATES = """
SELECT state, recipe, seed_tokens, size, coalesce(nullif(array_to_string(edges, ', '), ''), certificate.reason) AS why,
    run_id IS NOT NULL AS begun, note, coalesce(within_noise > 0, false) AS tied
FROM certificate JOIN (SELECT cell_id, note FROM cell) USING (cell_id) WHERE study = $1 ORDER BY recipe, seed_tokens, size
"""

UNITS = "Losses in nats/token; D: distinct training tokens; N: parameters; K: members of an ensemble; intervals 90%, noise alone."


def study_answer(connection: duckdb.DuckDBPyConnection, study: str) -> dict[str, Any]:
    """Return `question`, `sentence` (about what was reached), `trained` and `limits` (tables to read, as (columns, rows)),
    `caveats`, those first that decide, and `numbers`, (columns, rows) of the view `recipe_summary`.

    Raises `NotFoundError` for a study that is not recorded.
    """
    require_study(connection, study)
    columns, rows = query(connection, NUMBERS, [study])
    summary = [dict(zip(columns, row, strict=True)) for row in rows]
    question, baseline = connection.execute("SELECT question, baseline FROM study WHERE name = $1", [study]).fetchone()
    return {
        "question": str(question),
        "sentence": _sentence(summary, baseline),
        "trained": _trained_table(summary),
        "limits": _limits_table(summary),
        "caveats": _caveats(connection, study, summary, baseline),
        "numbers": (columns, rows),
    }


def plain(text: str) -> str:
    """Return Markdown that shows text as it is, on one line: what a study's author wrote is no markup."""
    return re.sub(r"([\\`*_{}\[\]<>$#~|!])", r"\\\1", " ".join(text.split()))


def bracketed(value: float | None, low: float | None, high: float | None, form: str) -> str:
    """Return a number beside its interval, either of whose ends may be missing."""
    if value is None:
        return "-"
    ends = f" [{'?' if low is None else f'{low:{form}}'}, {'∞' if high is None else f'{high:{form}}'}]"
    return f"{value:{form}}" + ("" if low is None and high is None else ends)


def ratio(row: dict[str, Any], name: str) -> str:
    """Return a data efficiency of a row of `recipe_summary` beside its interval; '> 100' for what lies beyond `FAR`."""
    value, low, high = (_capped(row, row[column]) for column in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return "-"
    return value if low is None and high is None else f"{value} [{low or '?'}, {high or '∞'}]"


def budgets(rows: Records) -> str:
    """Return the D of rows, to read."""
    return "; ".join(f"{row['seed_tokens']:,}" for row in rows)


def _capped(row: dict[str, Any], value: float | None) -> str | None:
    bound = FAR * (row["largest_budget"] or 0) / row["seed_tokens"]
    return None if value is None else f"> {bound:.0f}" if value > bound else f"{value:.2f}"


def _sentence(summary: Records, baseline: str | None) -> str:
    """Say what was reached at the largest D."""
    trained = [row for row in summary if row["best_trained"] is not None]
    if not trained:
        return "No run has finished yet: there is no answer."
    tokens = trained[0]["seed_tokens"]
    trained = [row for row in trained if row["seed_tokens"] == tokens]
    best, at = trained[0], f"at {tokens:,} tokens"
    single = next((row for row in trained if row["members"] == 1), None)
    ties = [row["recipe"] for row in trained[1:] if round(row["best_trained"] - best["best_trained"], 3) == 0]
    name = best["recipe"] + (f", tied with {', '.join(ties)}" if ties else "")
    who = f"{_models(best)} together ({name})" if best["members"] > 1 else f"The best single model ({name})"
    if len(trained) == 1:
        return f"{who} reached {_loss(best)} {at}; there is no other recipe to compare it with."
    if best["recipe"] == baseline:
        return f"No recipe beat the baseline, {name}, {at}: it reached {_loss(best)}, the next best ({trained[1]['recipe']}) " \
               f"{_loss(trained[1])}."  # fmt: skip
    if best["data_efficiency_trained"] is not None:
        text = f"{who} {'were' if best['members'] > 1 else 'was'} worth {_worth(best, ' the data')} {at}"
        if (best["data_efficiency_trained_low"] or 2) <= 1:
            text += ", which may be no gain"
        return f"{text}." if single in (None, best) else f"{text}; the best single model ({single['recipe']}) {_worth(single)}."
    others = [] if single in (None, best) else [f"the best single model ({single['recipe']}) {_loss(single)}"]
    base = next((row for row in trained if row["recipe"] == baseline and row is not single), None)
    others += [f"the baseline ({baseline}) {_loss(base)}"] if base else []
    reached = "; ".join([f"{who} reached {_loss(best)} {at}", *others])
    return f"{reached}. What that is worth in data is not known: {best['trained_reason']}."


def _models(row: dict[str, Any]) -> str:
    return f"{WORDS[row['members']] if row['members'] < len(WORDS) else row['members']} models"


def _loss(row: dict[str, Any]) -> str:
    return f"{row['best_trained']:.3f} nats/token"


def _worth(row: dict[str, Any], what: str = "") -> str:
    """Return the ratio of what was trained, in words."""
    value, low, high = (row[f"data_efficiency_trained{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return f"{_loss(row)} ({row['trained_reason']})"
    bound = FAR * row["largest_budget"] / row["seed_tokens"]
    text = f"{value:.1f}x" if value <= bound else f"more than {bound:.0f}x"
    notes = []
    if low is not None or high is not None:
        upper = "no upper end" if high is None else f"{high:.1f}" if high <= bound else f"over {bound:.0f}"
        notes.append(f"{'no lower end' if low is None else f'{min(low, bound):.1f}'} to {upper}")
    notes += ["extrapolated"] if row["trained_extrapolated"] else []
    return f"{text}{what}" + (f" ({', '.join(notes)})" if notes else "")


def _beyond(row: dict[str, Any], name: str) -> str:
    """Return how many times a ratio lies beyond the baseline's largest budget; '' where it does not."""
    if row[name] is None or (times := row[name] * row["seed_tokens"] / row["largest_budget"]) <= 1:
        return ""
    return f"D {times:.3g}x" if times <= FAR else f"D over {FAR}x"


def _trained_table(summary: Records) -> tuple[list[str], list[tuple[str, ...]]]:
    columns = ["recipe", "D", "loss", "model", "data efficiency", "extrapolated"]
    return columns, [
        (
            row["recipe"],
            f"{row['seed_tokens']:,}",
            bracketed(row["best_trained"], None, None, ".3f"),
            f"{row['members']} x {row['size']}" if row["size"] else "-",
            ratio(row, "data_efficiency_trained"),
            _beyond(row, "data_efficiency_trained"),
        )
        for row in summary
    ]


def _limits_table(summary: Records) -> tuple[list[str], list[tuple[str, ...]]]:
    columns = ["recipe", "D", "limit", "data efficiency", "beyond the data"]
    rows = []
    for row in summary:
        if row["kind"] == "best over N":
            continue
        beyond = [f"K -> ∞ from {row['largest_members']}"] if " in K" in row["kind"] else []
        beyond += [f"N -> ∞ from {row['largest_parameters'] or 0:,}"] if row["kind"] != "asymptote in K, best over N" else []
        beyond += [text] if (text := _beyond(row, "data_efficiency")) else []
        if row["limit_loss"] is None:
            beyond = [row["reason"].removeprefix("this recipe has ").replace(" here:", ":")]
        limit = bracketed(row["limit_loss"], row["e_low"], row["e_high"], ".3f")
        rows.append((row["recipe"], f"{row['seed_tokens']:,}", limit, ratio(row, "data_efficiency"), ", ".join(beyond)))
    return columns, rows


def _caveats(connection: duckdb.DuckDBPyConnection, study: str, summary: Records, baseline: str | None) -> list[str]:
    """Return what is doubtful, in short: the laws that the numbers rest on, the baseline's first; noise; certificates."""
    from dataeff.laws.fit import WARNINGS

    lines, laws = [], by_key(records(connection, LAWS, [study]), "recipe", "seed_tokens")
    for (recipe, tokens), (law,) in laws.items():
        doubts = [WARNINGS.get(name, "its residuals are larger than the noise (p < 0.01)") for name in law["warnings"]]
        if law["undefined"] > 0.05 * max(law["resamples"], 1):
            doubts.append(f"{law['undefined'] / law['resamples']:.0%} of its resamples show no limit")
        doubts += ["runs were added since it was fitted (`dataeff refresh`)"] if law["stale"] else []
        name = f"{recipe}'s law over N at D = {tokens:,}" if tokens else f"The baseline's data law ({recipe}), under every ratio"
        lines += [f"{name}: {'; '.join(doubts)}."] if doubts else []
    return [*lines, *_noise(connection, study), *_certificates(connection, study), UNITS]


def _noise(connection: duckdb.DuckDBPyConnection, study: str) -> list[str]:
    noise = records(connection, "SELECT * FROM noise WHERE study = $1 ORDER BY recipe", [study])
    without = [row["recipe"] for row in noise if row["noise_sd"] is None]
    measured = [f"{r['recipe']} {r['noise_sd']:.4f} ({r['degrees_of_freedom']})" for r in noise if r["noise_sd"] is not None]
    lines = [f"Run-to-run noise, sd (degrees of freedom): {', '.join(measured)}."] if measured else []
    return lines + ([f"One seed only, so no interval for single models: {', '.join(without)}."] if without else [])


def _certificates(connection: duckdb.DuckDBPyConnection, study: str) -> list[str]:
    cells = records(connection, CERTIFICATES, [study])
    states, tied = Counter(cell["state"] for cell in cells), sum(cell["tied"] for cell in cells)
    counts = ", ".join(f"{n} {state}" for state, n in sorted(states.items(), key=lambda item: item[0] != "certified"))
    lines = [f"Optima: {counts}{f'; {tied} tied with a neighbour within the noise' if tied else ''}."]
    waiting = Counter(cell["recipe"] for cell in cells if cell["state"] != "certified" and not cell["begun"])
    lines += [f"  nothing has finished yet: {', '.join(f'{recipe} ({n})' for recipe, n in waiting.items())}"] if waiting else []
    begun = [cell for cell in cells if cell["state"] != "certified" and cell["begun"]]
    for (state, why), own in by_key(begun, "state", "why").items():
        lines.append(f"  {state}: {_places(own)}: {why}")
    for (note,), own in by_key([cell for cell in cells if cell["note"]], "note").items():
        lines.append(f"  note: {_places(own)}: {note}")
    return lines


def _places(cells: Records) -> str:
    if len(cells) > 4:
        return f"{len(cells)} cells of {', '.join(dict.fromkeys(cell['recipe'] for cell in cells))}"
    return "; ".join(f"{cell['recipe']}, D = {cell['seed_tokens']:,}, {cell['size']}" for cell in cells)
