"""A study's report: question, answer, figures, tables, caveats, how it was done and what it cost, in one file.

A report is made of parts, each with the SQL behind it, and is written by a template as HTML, which carries its charts and the
code that draws them and needs no network, or as Markdown with the charts as PNG beside it. Numbers are those of the views;
nothing is computed here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import duckdb
import jinja2

import dataeff
from dataeff.errors import InputError, nearest
from dataeff.records.queries import query, records
from dataeff.reports import efficiency, ensembles
from dataeff.reports.answer import NUMBERS, plain, study_answer
from dataeff.reports.charts import chart_bytes, limits_chart
from dataeff.reports.frames import LIMITS, readable, study_limits
from dataeff.reports.theme import themed

UNCERTAIN = """
SELECT recipe, seed_tokens, size, state, objective_loss AS best_loss, margin, reason
FROM certificate LEFT JOIN (FROM grid_point WHERE is_best) AS point USING (cell_id)
WHERE study = $1 AND state <> 'certified' ORDER BY recipe, seed_tokens, parameters_total
"""

FITS = """
SELECT recipe, seed_tokens, quantity, value, low, high, points, undefined, resamples, len(run_ids) AS runs, stale, method,
    warnings
FROM fit_state WHERE study = $1 AND value IS NOT NULL ORDER BY recipe, quantity, seed_tokens
"""

MEMBERS = """
SELECT recipe, size, curve.members, mean_loss AS val_loss, least, greatest, subsets, limit_loss, a, alpha, e
FROM ensemble_curve AS curve JOIN ensemble_asymptote AS law USING (cell_id, ensemble_id, averaging)
WHERE study = $1 AND seed_tokens = {seed_tokens} AND averaging = '{averaging}' ORDER BY ALL
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
    (SELECT version FROM schema) AS "schema"
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
class Part:
    """A section: sentences, a text shown as it is, a chart, or a table; `sql` are the queries behind it, with $1 the study."""

    title: str
    lines: Sequence[str] = ()
    verbatim: str = ""
    chart: alt.TopLevelMixin | None = None
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    sql: Sequence[str] = ()
    none: str = "None."
    folded: bool = False

    @property
    def name(self) -> str:
        """The title as part of a file's name."""
        return re.sub(r"\W+", "-", self.title.lower())


def study_report(connection: duckdb.DuckDBPyConnection, study: str) -> dict[str, Any]:
    """Return the `study`, `title` and `parts` of a report. Raises `NotFoundError` with the nearest name."""
    answer = study_answer(connection, study)
    (declaration,) = connection.execute("SELECT text FROM study WHERE name = $1", [study]).fetchone()
    (versions,) = records(connection, VERSIONS, [study])
    software = [f"dataeff {dataeff.__version__}", f"duckdb {duckdb.__version__}"]
    software += [f"{name.replace('_', ' ')}: {value}" for name, value in versions.items() if value is not None]

    def table(title: str, sql: str, **more: Any) -> Part:
        columns, rows = query(connection, sql, [study])
        return Part(title, columns=columns, rows=rows, sql=[sql], **more)

    return {
        "study": study,
        "title": answer["question"],
        "parts": [
            Part("Answer", [answer["sentence"]]),
            Part("Loss against size", chart=limits_chart(**study_limits(connection, study) | {"title": ""}), sql=[LIMITS]),
            *_more_figures(connection, study),
            Part("Trained", columns=answer["trained"][0], rows=answer["trained"][1], sql=[NUMBERS]),
            Part("Limits, extrapolated", columns=answer["limits"][0], rows=answer["limits"][1], sql=[NUMBERS]),
            Part("Caveats", answer["caveats"]),
            table("Optima that are not certified", UNCERTAIN, none="All are certified."),
            table("Fits", FITS, none="Nothing was fitted.", folded=True),
            table("Cost", COST),
            Part("Method", [ELSEWHERE if versions["imported_from"] else PROTOCOL, METHOD, "; ".join(software)]),
            Part("Study file", verbatim=declaration, folded=True),
        ],
    }


def _more_figures(connection: duckdb.DuckDBPyConnection, study: str) -> list[Part]:
    """Return the figures that need limits, ratios or ensembles, of those that there are."""
    figures, frames = [], efficiency.study_efficiency(connection, study)
    ratios, named = frames["ratios"], (frames["recipes"], frames["baseline"])
    if any(row["limit_loss"] is not None for row in ratios):
        chart = efficiency.data_laws_chart(ratios, frames["laws"], *named)
        figures.append(Part("Limits against data", chart=chart, sql=[efficiency.RATIOS, efficiency.DATA_LAWS]))
    by_law = efficiency.by_method(ratios, "by law")
    if any(row["ratio"] is not None for row in by_law):
        figures.append(Part("Data efficiency", chart=efficiency.ratios_chart(by_law, "by law", *named), sql=[efficiency.RATIOS]))
    choices = ensembles.ensemble_choices(connection, study)
    if choices["recipe"]:
        largest, averaging = choices["seed_tokens"][0], choices["averaging"][0]
        shown = ensembles.study_ensembles(connection, study, largest, averaging, (), ())
        if shown["curves"]:
            chart = ensembles.members_chart(*(shown[name] for name in ("points", "curves", "laws", "recipes")))
            title = f"Ensembles at D = {largest:,} tokens, {averaging} averaged"
            figures.append(Part(title, chart=chart, sql=[MEMBERS.format(seed_tokens=largest, averaging=averaging)]))
    return figures


def require_report_form(form: str) -> None:
    """Raise `InputError` for what a report cannot be written as."""
    if form not in ("html", "md"):
        raise InputError(f"a report cannot be written as '{form}'; {nearest(form, ['html', 'md'])}")


def write_report(report: dict[str, Any], path: Path, form: str) -> list[Path]:
    """Write a report as `form` "html" or "md" (charts beside it, as PNG); return the files. Raises `InputError` for another."""
    require_report_form(form)
    charts = {part.name: themed(part.chart) for part in report["parts"] if part.chart}
    if form == "html":
        from vl_convert import javascript_bundle

        specs = {name: chart.to_dict() for name, chart in charts.items()}
        path.write_text(_filled("report.html.j2", report=report, charts=specs, javascript=javascript_bundle()), encoding="utf-8")
        return [path]
    files = {name: path.with_name(f"{path.stem}-{name}.png") for name in charts}
    for name, chart in charts.items():
        files[name].write_bytes(chart_bytes(chart, "png"))
    path.write_text(_filled("report.md.j2", report=report, stem=path.stem), encoding="utf-8")
    return [path, *files.values()]


def _filled(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dataeff.reports"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"readable": readable, "plain": plain}
    return environment.get_template(template).render(values)
