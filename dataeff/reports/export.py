"""A study's report: the answer, numbered figures and tables, caveats, methods, and the SQL of each number, in one file.

A template writes it as HTML, which carries its charts and the code that draws them and needs no network, or as Markdown with
the charts as PNG next to it. Numbers are those of the views; nothing is computed here.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import jinja2
import vl_convert

import dataeff
from dataeff.errors import InputError, nearest
from dataeff.records.queries import query, records
from dataeff.reports import laws
from dataeff.reports.answer import NUMBERS, plain, study_answer
from dataeff.reports.charts import chart_bytes, law_figure, limits_chart, ratio_figure
from dataeff.reports.frames import LIMITS, readable, study_limits
from dataeff.reports.theme import themed

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
    string_agg(DISTINCT corpus_name || ' (' || corpus || ')', ', ') AS corpus,
    string_agg(DISTINCT "precision", ', ') AS "precision", string_agg(DISTINCT source, ', ') AS imported_from
FROM (SELECT DISTINCT run_id FROM trial JOIN cell USING (cell_id) WHERE study = $1) JOIN run USING (run_id)
"""


def write_report(connection: duckdb.DuckDBPyConnection, study: str, path: Path, authors: Sequence[str] = ()) -> list[Path]:
    """Write the report of a study as .html, or as .md with its charts next to it as PNG; return the files.

    Raises `InputError` for another suffix, and `NotFoundError` with the nearest name of a study.
    """
    form = path.suffix[1:]
    if form not in ("html", "md"):
        raise InputError(f"a report cannot be written as '{form}'; {nearest(form, ['html', 'md'])}")
    answer, figures, files = study_answer(connection, study), _figures(connection, study), [path]
    tables = (
        ("trained", "Least loss trained by each recipe and D, and its data efficiency.", answer["trained"], [NUMBERS]),
        ("limits", "Limits, all extrapolated, and how far beyond the data.", answer["limits"], [NUMBERS]),
        ("cost", "Cost.", query(connection, COST, [study]), [COST]),
    )
    (versions,) = records(connection, VERSIONS, [study])
    values = {
        "study": study,
        "authors": list(authors),
        "date": f"{datetime.now():%-d %B %Y}",
        "stem": path.stem,
        "answer": answer,
        "figures": figures,
        "tables": {
            name: {"name": f"Table {number}", "caption": caption, "columns": columns, "rows": rows, "sql": sql}
            for number, (name, caption, (columns, rows), sql) in enumerate((part for part in tables if part[2][1]), 1)
        },
        "imported": bool(versions.pop("imported_from")),
        "software": {"dataeff": dataeff.__version__, "DuckDB": duckdb.__version__, **versions},
        "declaration": connection.execute("SELECT text FROM study WHERE name = $1", [study]).fetchone()[0],
        "javascript": vl_convert.javascript_bundle() if form == "html" else "",
    }
    for figure in figures if form == "md" else ():
        files.append(path.with_name(f"{path.stem}-{figure['id']}.png"))
        files[-1].write_bytes(chart_bytes(figure["chart"], "png"))
    loader, blocks = jinja2.PackageLoader("dataeff.reports"), {"trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=loader, autoescape=form == "html", **blocks)
    environment.filters |= {"readable": readable, "plain": plain}
    path.write_text(environment.get_template(f"report.{form}.j2").render(values) + "\n", encoding="utf-8")
    return files


def _figures(connection: duckdb.DuckDBPyConnection, study: str) -> list[dict[str, Any]]:
    """Return the figures for which there are numbers: `id`, `name`, `caption`, `chart` and `sql`."""
    figures, limits = [], study_limits(connection, study)
    if limits["rows"]:
        figures.append(("Loss against parameters at each D.", limits_chart(limits["rows"], limits["recipes"]), [LIMITS]))
    if ratios := records(connection, laws.RATIOS, [study]):
        caption = "Data efficiency: tokens the baseline needs to reach a recipe's loss, over D."
        figures.append((caption, ratio_figure(ratios, limits["recipes"]), [laws.RATIOS]))
    for over in ("K", "D"):
        frames = laws.study_laws(connection, study, over)
        chosen = max((law["seed_tokens"] or 0 for law in frames["laws"]), default=0)
        own = [law for law in frames["laws"] if (law["seed_tokens"] or 0) == chosen and law["averaging"] in (None, "logits")]
        rows = laws.law_rows(own, frames["points"], over)
        if any(row["layer"] == "law" for row in rows):
            caption = f"Ensembles at D = {chosen:,}, logits averaged." if over == "K" else "Limits of each recipe over D."
            figure = law_figure(rows, laws.axis(frames["points"], over), limits["recipes"])
            figures.append((caption, figure, [laws.POINTS[over], laws.LAWS[over]]))
    return [
        {"id": f"figure-{i}", "name": f"Figure {i}", "caption": f"{text} {chart['description']}", "sql": sql, "chart": chart}
        for i, (text, chart, sql) in enumerate(((text, themed(chart), sql) for text, chart, sql in figures), 1)
    ]
