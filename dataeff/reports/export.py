"""A study's report: question, answer, figures, tables, what is in doubt, how it was done and what it cost, in one file.

A report is made of parts (`Figure`, `Table`, `Text`), each with the SQL behind it, and is written as HTML, which carries its
charts and the code that draws them and needs no network, or as Markdown with the charts as PNG beside it. Numbers are those of
the views; nothing is computed here.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import duckdb

import dataeff
from dataeff.errors import InputError, nearest
from dataeff.records.queries import query, records
from dataeff.reports import efficiency, ensembles
from dataeff.reports.answer import ROWS, answer_table, plain
from dataeff.reports.charts import chart_bytes, limits_chart
from dataeff.reports.frames import CURVES, LAWS, LIMITS, POINTS, WORTH, study_answer

UNCERTAIN = """
SELECT recipe, seed_tokens, size, state, val_loss AS best_loss, margin, reason
FROM certificate LEFT JOIN (FROM grid_point WHERE is_best) AS point USING (cell_id)
WHERE study = $1 AND state <> 'certified' ORDER BY recipe, seed_tokens, parameters_total
"""

FITS = """
SELECT recipe, seed_tokens, quantity, value, low, high, points, undefined, resamples, len(run_ids) AS runs, stale, method,
    warnings
FROM fit_state WHERE study = $1 AND value IS NOT NULL ORDER BY recipe, quantity, seed_tokens
"""

# What a run cost counts once in the total, whichever recipes share it.
COST = """
WITH used AS (
    SELECT DISTINCT recipe, run_id FROM trial JOIN cell USING (cell_id) WHERE study = $1
    UNION ALL
    SELECT DISTINCT 'all, each run once', run_id FROM trial JOIN cell USING (cell_id) WHERE study = $1
)
SELECT recipe, count(*) AS runs, sum(training_flops) AS training_flops, sum(wall_seconds) / 3600 AS device_hours,
    string_agg(DISTINCT device, ', ') AS devices
FROM used JOIN run USING (run_id) GROUP BY recipe ORDER BY recipe = 'all, each run once', recipe
"""

VERSIONS = """
SELECT string_agg(DISTINCT torch_version, ', ') AS torch, string_agg(DISTINCT trainer_version::VARCHAR, ', ') AS trainer,
    string_agg(DISTINCT corpus_name, ', ') AS corpus, string_agg(DISTINCT corpus, ', ') AS corpus_fingerprint,
    string_agg(DISTINCT "precision", ', ') AS "precision", string_agg(DISTINCT source, ', ') AS imported_from,
    (SELECT max(version) FROM schema_migration) AS "schema"
FROM (SELECT DISTINCT run_id FROM trial JOIN cell USING (cell_id) WHERE study = $1) JOIN run USING (run_id)
"""

PROTOCOL = (
    "Every run is a function of its specification; equal specifications are one run. Losses are validation cross-entropy in nats "
    "per token on held-out documents, the same for every run. Hyper-parameters are tuned by coordinate descent on the grid, for "
    "each recipe, budget and size."
)
ELSEWHERE = "The runs were trained elsewhere and imported: how, and what was searched, is for their source to say."
METHOD = (
    "An optimum is certified when every one-step neighbour on the grid was run and none is better. Laws are L = A / x^alpha + E "
    "with A, E >= 0 and 0.02 <= alpha <= 3, by least squares over the best points of the cells. Intervals are 90%: every loss is "
    "drawn anew with its standard error, and the whole chain of laws is fitted again."
)


@dataclass(frozen=True)
class Text:
    title: str
    lines: Sequence[str]
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """`sql`: the queries whose rows are drawn, with $1 the study."""

    name: str
    title: str
    chart: alt.TopLevelMixin
    sql: Sequence[str]


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    sql: str
    none: str = "None."
    folded: bool = False


@dataclass(frozen=True)
class Report:
    study: str
    title: str
    parts: Sequence[Text | Figure | Table] = field(default_factory=list)


def study_report(connection: duckdb.DuckDBPyConnection, study: str) -> Report:
    """Return the report of a recorded study. Raises `NotFoundError` with the nearest name."""
    found = study_answer(connection, study)
    (text,) = connection.execute("SELECT text FROM study WHERE name = $1", [study]).fetchone()
    title, answers, doubts = found["text"]
    (versions,) = records(connection, VERSIONS, [study])
    said = [f"{name.replace('_', ' ')}: {value}" for name, value in versions.items() if value is not None]
    return Report(
        study,
        title,
        [
            Text("Answer", answers),
            Figure("limits", "Loss against size at each budget", limits_chart(**found["limits"]),
                   [POINTS, LAWS, CURVES, LIMITS, WORTH]),
            *_more_figures(connection, study),
            Table("What each recipe reaches, and what that is worth", *answer_table(*found["table"]), ROWS),
            Text("What is in doubt", doubts),
            Table("Optima that are not certified", *query(connection, UNCERTAIN, [study]), UNCERTAIN, "All are certified."),
            Table("Fits", *query(connection, FITS, [study]), FITS, "Nothing was fitted.", folded=True),
            Table("Cost", *query(connection, COST, [study]), COST),
            Text("Method", [ELSEWHERE if versions["imported_from"] else PROTOCOL, METHOD,
                            f"dataeff {dataeff.__version__}, duckdb {duckdb.__version__}; {'; '.join(said)}"]),
            Text("The study's declaration", text.splitlines(), folded=True),
        ],
    )  # fmt: skip


def _more_figures(connection: duckdb.DuckDBPyConnection, study: str) -> list[Figure]:
    """Return the figures that need limits, ratios or ensembles, of those that there are."""
    figures, found = [], efficiency.study_efficiency(connection, study)
    ratios, named = found["ratios"], (found["recipes"], found["baseline"])
    if any(row["limit_loss"] is not None for row in ratios):
        chart = efficiency.data_laws_chart(ratios, found["laws"], *named)
        figures.append(Figure("data-laws", "Limits against data", chart, [efficiency.RATIOS, efficiency.DATA_LAWS]))
    worth = efficiency.by_method(ratios, "by law")
    if any(row["ratio"] is not None for row in worth):
        chart = efficiency.ratios_chart(worth, "by law", *named)
        figures.append(Figure("data-efficiency", "What each recipe is worth in data", chart, [efficiency.RATIOS]))
    choices = ensembles.ensemble_choices(connection, study)
    if choices["recipes"]:
        largest = choices["seed_tokens"][0]
        drawn = ensembles.study_ensembles(connection, study, largest, choices["averagings"][0], (), ())
        if drawn["curves"]:
            chart = ensembles.members_chart(*(drawn[name] for name in ("points", "curves", "laws", "recipes")))
            title = f"Ensembles at D = {largest:,} tokens, {choices['averagings'][0]} averaged"
            figures.append(Figure("ensembles", title, chart, [CURVES]))
    return figures


def require_report_form(form: str) -> None:
    """Raise `InputError` for what a report cannot be written as."""
    if form not in ("html", "md"):
        raise InputError(f"a report cannot be written as '{form}'; {nearest(form, ['html', 'md'])}")


def write_report(report: Report, path: Path, form: str) -> list[Path]:
    """Write a report as `form` "html" or "md" (charts beside it, as PNG); return the files. Raises `InputError` for another."""
    require_report_form(form)
    if form == "html":
        path.write_text(_html(report), encoding="utf-8")
        return [path]
    charts = {part.name: path.with_name(f"{path.stem}-{part.name}.png") for part in report.parts if isinstance(part, Figure)}
    for part in report.parts:
        if isinstance(part, Figure):
            charts[part.name].write_bytes(chart_bytes(part.chart, "png"))
    path.write_text(_markdown(report, charts), encoding="utf-8")
    return [path, *charts.values()]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:.5g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


STYLE = """
body { font: 15px/1.5 Helvetica, Arial, sans-serif; color: #1a1a1a; max-width: 1080px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em } .chart { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { text-align: left; padding: 3px 12px 3px 0; border-bottom: 1px solid #e0e0e0; vertical-align: top }
details { font-size: 13px; color: #555 } pre { background: #f6f6f6; padding: 8px; overflow-x: auto }
"""


def _html(report: Report) -> str:
    from vl_convert import javascript_bundle

    body, specs = [], {}
    for part in report.parts:
        body.append(f"<h2>{html.escape(part.title)}</h2>")
        if isinstance(part, Text):
            lines = [html.escape(line) for line in part.lines]
            whole = f"<pre>{chr(10).join(lines)}</pre>"
            body.append(_folded(whole) if part.folded else _paragraphs(lines))
            continue
        if isinstance(part, Figure):
            specs[f"chart-{part.name}"] = part.chart.to_dict()
            body.append(f'<div class="chart" id="chart-{part.name}"></div>')
        elif not part.rows:
            body.append(f"<p>{html.escape(part.none)}</p>")
        else:
            rows = [part.columns, *part.rows]
            cells = [
                "".join(f"<{tag}>{html.escape(_shown(v))}</{tag}>" for v in row)
                for tag, row in zip(["th", *["td"] * len(part.rows)], rows, strict=True)
            ]
            whole = f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
            body.append(_folded(whole) if part.folded else whole)
        queries = [part.sql] if isinstance(part, Table) else part.sql
        body.append(f"<details><summary>SQL, with $1 = '{html.escape(report.study)}'</summary>")
        body += [f"<pre>{html.escape(text.strip())}</pre>" for text in queries]
        body.append("</details>")
    charts = json.dumps(specs).replace("<", "\\u003c")  # no text of a study's ends the script
    draw = (
        'for (const [id, spec] of Object.entries(charts)) vegaEmbed("#" + id, spec, {actions: {source: false, compiled: false}})'
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(report.study)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{html.escape(report.title)}</h1>{''.join(body)}"
        f"<script>{javascript_bundle()}</script><script>const charts = {charts};\n{draw};</script></body></html>\n"
    )


def _folded(whole: str) -> str:
    return f"<details><summary>show</summary>{whole}</details>"


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{'&emsp;' * (line.startswith('  '))}{line.strip()}</p>" for line in lines)


def _markdown(report: Report, charts: dict[str, Path]) -> str:
    lines = [f"# {plain(report.title)}"]
    for part in report.parts:
        lines += ["", f"## {part.title}", ""]
        if isinstance(part, Text):
            items = [f"- {plain(x.strip())}" if x[:2] == "  " else f"{plain(x)}\n" for x in part.lines]
            lines += ["~~~~~~", *part.lines, "~~~~~~"] if part.folded else items
            continue
        if isinstance(part, Figure):
            lines.append(f"![{part.title}]({charts[part.name].name})")
        elif not part.rows:
            lines.append(part.none)
        else:
            table = [[plain(_shown(value)) for value in row] for row in (part.columns, *part.rows)]
            table.insert(1, ["---"] * len(part.columns))
            lines += [f"| {' | '.join(row)} |" for row in table]
        queries = [part.sql] if isinstance(part, Table) else part.sql
        lines += ["", f"<details><summary>SQL, with $1 = '{report.study}'</summary>", ""]
        lines += [f"```sql\n{text.strip()}\n```\n" for text in queries]
        lines.append("</details>")
    return "\n".join(lines) + "\n"
