"""`dataeff audit`: a table of losses from anywhere, audited by `dataeff.laws.audit` and shown as tables.

`studies/published.csv` is bundled: losses, limits and ratios of arXiv 2509.14786 at D = 209.7M. Its baseline has that one budget,
so the ends of the range of data laws that the paper gives for all its recipes stand for a law.
"""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jinja2

from dataeff.errors import InputError, nearest
from dataeff.laws import audit as laws
from dataeff.records.imports import SPELLINGS
from dataeff.records.queries import query, records
from dataeff.records.sources import is_source, read_source
from dataeff.records.store import Database
from dataeff.reports.answer import plain
from dataeff.reports.frames import readable
from dataeff.share import shared_folder

REQUIRED = ("recipe", "seed_tokens", "val_loss")
COLUMNS = (*laws.POINT, "val_loss", "standard_error", "published_ratio", "law_alpha", "law_e")
SPELLED = {name: name for name in COLUMNS} | SPELLINGS | {"d": "seed_tokens", "loss": "val_loss", "val_loss_mean": "val_loss"}
SPELLED |= dict.fromkeys(("n", "parameters", "parameters_nominal"), "parameters_total")


def audit_table(source: str, baseline: str, mapped: dict[str, str], database: Database) -> dict[str, Any]:
    """Audit a bundled table, a file or tracker (`read_source`) or a query on `database`; `mapped` gives for one of `COLUMNS` a
    column of the table or SQL over those. Raises `InputError` for columns that are missing, `QueryError` for what DuckDB refuses.
    """
    source = {file.stem: str(file) for file in shared_folder("studies").glob("*.csv")}.get(source, source)
    with nullcontext(read_source(source).connection) if is_source(source) else database.read() as connection:
        table = "unfiltered" if is_source(source) else f"({source.rstrip(' ;')})"
        columns = [row[0] for row in query(connection, f"DESCRIBE SELECT * FROM {table}")[1]]
        named = {SPELLED[name.lower()]: f'"{name}"' for name in reversed(columns) if name.lower() in SPELLED}
        for name in (*mapped, *REQUIRED):
            if name not in COLUMNS:
                raise InputError(f"--map {name}: no such column of an audit; {nearest(name, COLUMNS)}")
            if name not in named | mapped:
                raise InputError(f"{source} has no column {name}; add --map {name}=COLUMN, of {', '.join(columns)}")
        types = {name: "VARCHAR" if name == "recipe" else "DOUBLE" for name in COLUMNS}
        casts = (f'CAST({sql} AS {types[name]}) AS "{name}"' for name, sql in (named | mapped).items() if name in types)
        return laws.audit(records(connection, f"SELECT {', '.join(casts)} FROM {table}"), baseline)


def audit_parts(audited: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str], list[list[Any]]]]]:
    """Return what is read of an audit: lines, and tables as (title, columns, rows)."""
    law, noise, ratios, rules = audited["law"], audited["noise_sd"], [], []
    used = {rule["rule"] for r in audited["ratios"] for rule in r["rules"] if rule["ratio"] is not None}
    constants = "".join(f"; {name} {law[name]:.4g}" for name in ("a", "alpha", "e", "rmse") if name in law)
    lines = [
        f"{audited['verdict']}: {audited['reason']}. A ratio is a range over rules, not an interval.",
        f"Baseline's law: {law['form']}{constants}; points {law['points']}, degrees of freedom {law['degrees_of_freedom']}.",
        f"Noise of one loss: {'not known' if noise is None else f'sd {noise:.4f} nats'}.",
    ]
    for r in audited["ratios"]:
        place, verdict = [r["recipe"], f"{r['seed_tokens']:,.10g}"], f"{r['verdict']}: {r['reason']}"
        span = [f"{_times(r['low'])} to {_times(r['high'])}", _times(r["published"])]
        ratios.append([*place, r["loss"], *span, f"{r['halved_by']:.3f}", r["points"], verdict])
        rules.append([*place, *(_times(rule["ratio"]) for rule in r["rules"] if rule["rule"] in used)])
    reasons = dict.fromkeys((rule["rule"], rule["reason"]) for r in audited["ratios"] for rule in r["rules"] if rule["reason"])
    base = [[f"{each['seed_tokens']:,.10g}", each["loss"], each["points"]] for each in audited["baseline"]]
    return lines, [
        ("Ratios", ["recipe", "D", "loss", "ratio", "published", "nats that halve it", "points", "verdict"], ratios),
        ("Flaws", ["name", "finding"], [[flaw["name"], flaw["text"]] for flaw in audited["findings"]]),
        ("Baseline", ["D", "loss", "points"], base),
        ("By rule", ["recipe", "D", *(r["rule"] for r in audited["ratios"][0]["rules"] if r["rule"] in used)], rules),
        ("Rules without a ratio", ["rule", "reason"], list(map(list, reasons))),
    ]


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else "never" if math.isinf(ratio) else f"{ratio:,.2f}x"


def write_audit(audited: dict[str, Any], path: Path, title: str) -> None:
    """Write an audit as a page, .html or .md."""
    lines, tables = audit_parts(audited)
    loader, blocks = jinja2.PackageLoader("dataeff.reports"), {"trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=loader, autoescape=path.suffix == ".html", **blocks)
    environment.filters |= {"readable": readable, "plain": plain}
    page = environment.get_template(f"audit{path.suffix}.j2").render(title=title, lines=lines, tables=tables)
    path.write_text(page + "\n", encoding="utf-8")
