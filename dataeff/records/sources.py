"""Where results trained elsewhere are read: files of runs, Weights & Biases, MLflow. A source becomes a table, a row a run.

DuckDB reads CSV, TSV and Parquet. What is nested (JSON, a tracker's configuration and summary) becomes flat columns:
`optimizer.beta` for what lies within, and `lr` for `params.lr` or `config.lr` where no other group has that name. Trackers give
text for numbers, so such rows pass through CSV, whose types DuckDB finds over all rows. What columns mean is for
`dataeff.records.imports`.
"""

import csv
import importlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import duckdb

from dataeff.errors import InputError, nearest
from dataeff.records.queries import literal, query

FILES = (".csv", ".tsv", ".parquet", ".json", ".jsonl")
GROUPS = ("params", "metrics", "tags", "config", "summary")
ROW = "dataeff_row"  # the number of a source's row, from 1


class RowsOfRuns(NamedTuple):
    """Rows of a file or tracker: table `unfiltered` of `connection`, numbered in column `ROW`; `name` says where from."""

    name: str
    connection: duckdb.DuckDBPyConnection


def is_source(text: str) -> bool:
    """Whether `text` has the form of a source: a file's name, mlflow:URI or wandb:ENTITY/PROJECT."""
    return text.startswith(("mlflow:", "wandb:")) or Path(text).suffix.lower() in FILES


def read_source(text: str) -> RowsOfRuns:
    """Read the source that `text` names.

    Raises `InputError` when it is not there, cannot be reached or needs a package that is not installed, `QueryError` for a file
    that DuckDB cannot read.
    """
    tracker, _, place = text.partition(":")
    path = Path(text)
    if tracker in ("mlflow", "wandb"):
        return _nested_source(*_mlflow(place) if tracker == "mlflow" else (text, _wandb(place)))
    if not path.is_file():
        remedy = f"give one of {', '.join(FILES)}, mlflow:URI#EXPERIMENT or wandb:ENTITY/PROJECT"
        raise InputError(f"there is no file {path}; {remedy}")
    nested = path.suffix.lower() in (".json", ".jsonl")
    return _nested_source(path.name, _json(path)) if nested else _table_source(path.name, path)


def connect_to(table: str, rows: str) -> duckdb.DuckDBPyConnection:
    """Return a connection in memory, with a table of a query's rows. Raises `QueryError` when they cannot be read."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    query(connection, f"CREATE TABLE {table} AS {rows}")
    return connection


def _table_source(name: str, path: Path) -> RowsOfRuns:
    reader = literal(path) if path.suffix.lower() == ".parquet" else f"read_csv({literal(path)}, header = true, sample_size = -1)"
    return RowsOfRuns(name, connect_to("unfiltered", f"SELECT row_number() OVER () AS {ROW}, * FROM {reader}"))


def _nested_source(name: str, rows: list[dict[str, Any]]) -> RowsOfRuns:
    """Return nested rows as flat ones, with the types that DuckDB finds in their text."""
    if not rows:
        raise InputError(f"{name} has no runs")
    flat = [dict(_leaves(row)) for row in rows]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    bare = [column.partition(".")[2] if column.partition(".")[0] in GROUPS else column for column in columns]
    counts = Counter(bare)
    header = [short if counts[short] == 1 else column for column, short in zip(columns, bare, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *([row.get(column) for column in columns] for row in flat)])
        return _table_source(name, path)


def _leaves(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, list) else value


def _json(path: Path) -> list[dict[str, Any]]:
    _, texts = query(duckdb.connect(), f"SELECT json FROM read_json_objects({literal(path)})")
    rows = [json.loads(text) for (text,) in texts]
    if wrong := [row for row in rows if not isinstance(row, dict)]:
        raise InputError(f"{path} has {str(wrong[0])[:40]} where a run should be; give a list of objects, or one object a line")
    return rows


def _mlflow(place: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the name of a store and the runs of an experiment, or of all; metrics by their last value."""
    uri, _, experiment = place.partition("#")
    parts = urlsplit(uri)
    path = Path(parts.path[1:] if parts.scheme == "sqlite" else parts.path)
    if parts.scheme in ("sqlite", "file", "") and not path.exists():
        raise InputError(f"there is no MLflow store {uri}; give mlflow:sqlite:///FILE, mlflow:FOLDER or mlflow:http://HOST")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 refuses folders to those who would write them
    mlflow = _package("mlflow")
    try:
        mlflow.set_tracking_uri(uri)
        names = {each.experiment_id: each.name for each in mlflow.search_experiments()}
        if experiment and experiment not in names.values():
            raise InputError(f"{uri} has no experiment '{experiment}'; {nearest(experiment, names.values())}")
        ids = [key for key, name in names.items() if experiment in ("", name)]
        runs = mlflow.search_runs(ids, order_by=["attributes.start_time"], output_format="list")
    except mlflow.MlflowException as error:
        raise InputError(f"{uri} cannot be read as an MLflow store: {error}") from error
    rows = []
    for run in runs:
        row = {"mlflow.run_id": run.info.run_id, "mlflow.experiment": names[run.info.experiment_id], "status": run.info.status}
        row |= {"started_at": _time(run.info.start_time), "ended_at": _time(run.info.end_time)}
        rows.append(row | {"params": run.data.params, "metrics": run.data.metrics, "tags": run.data.tags})
    return f"mlflow:{parts.hostname or path.name}{'#' if experiment else ''}{experiment}", rows


def _time(milliseconds: int | None) -> str | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat() if milliseconds else None


def _wandb(project: str) -> list[dict[str, Any]]:
    if project.count("/") != 1:
        raise InputError(f"wandb:{project}: a project is named ENTITY/PROJECT; give wandb:ENTITY/PROJECT")
    wandb = _package("wandb")
    try:
        rows = []
        for run in wandb.Api().runs(project, lazy=False):
            row = {"wandb.id": run.id, "wandb.name": run.name, "status": run.state, "started_at": run.created_at}
            rows.append(row | {"config": run.config, "summary": run.summary_metrics})
        return rows
    except Exception as error:  # of its own, of its service and of the network: they have no base in common
        raise InputError(f"wandb:{project} cannot be read: {error}; `wandb login` says who you are") from error


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"reading {name} takes a package that is not installed; pip install 'dataeff[{name}]'") from error
