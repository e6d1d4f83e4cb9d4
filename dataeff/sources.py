"""Where results trained elsewhere are read: files of runs, Weights & Biases, MLflow. A source becomes a table, a row a run.

DuckDB reads CSV, TSV and Parquet. What is nested (JSON, the configuration and summary of a tracker's run) becomes flat columns:
`optimizer.beta` for what lies within, and `lr` for `params.lr` or `config.lr` where no other group has that name. Trackers give
text for numbers, so that such rows pass through CSV, whose types DuckDB finds over all rows. What the columns mean is for
`dataeff.records.external`; nothing is written, and nothing is decided here.
"""

from __future__ import annotations

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
from typing import Any
from urllib.parse import urlsplit

import duckdb

from dataeff.errors import InputError, nearest
from dataeff.records.external import ROW, Source
from dataeff.records.queries import literal, query

FILES = (".csv", ".tsv", ".parquet", ".json", ".jsonl")
GROUPS = ("params", "metrics", "tags", "config", "summary")

Record = dict[str, Any]


def is_source(text: str) -> bool:
    """Whether `text` has the form of a source: a file's name, mlflow:URI or wandb:ENTITY/PROJECT."""
    return text.startswith(("mlflow:", "wandb:")) or Path(text).suffix.lower() in FILES


def read_source(text: str) -> Source:
    """Read the source that `text` names.

    Raises `InputError` when it is not there, cannot be reached or needs a package that is not installed, `QueryError` for a file
    that DuckDB cannot read.
    """
    tracker, _, place = text.partition(":")
    if tracker == "mlflow":
        name, rows = _mlflow(place)
    elif tracker == "wandb":
        name, rows = text, _wandb(place)
    else:
        path = Path(text)
        if not path.is_file():
            raise InputError(
                f"there is no file {path}; give one of {', '.join(FILES)}, mlflow:URI#EXPERIMENT or wandb:ENTITY/PROJECT"
            )
        if path.suffix.lower() not in (".json", ".jsonl"):
            return Source(path.name, _table(path))
        name, rows = path.name, _json(path)
    if not rows:
        raise InputError(f"{text} has no runs")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        flat = _bare([dict(_leaves(row)) for row in rows])
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in flat for key in row)))
            writer.writeheader()
            writer.writerows(flat)
        return Source(name, _table(path))


def _table(path: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    reader = literal(path) if path.suffix.lower() == ".parquet" else f"read_csv({literal(path)}, header = true, sample_size = -1)"
    query(connection, f"CREATE TABLE source AS SELECT row_number() OVER () AS {ROW}, * FROM {reader}")
    return connection


def _json(path: Path) -> list[Record]:
    text = path.read_text(encoding="utf-8")
    try:
        whole = text.lstrip().startswith("[")
        rows = json.loads(text) if whole else [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}; give a list of objects, or one object a line") from error
    if wrong := [row for row in rows if not isinstance(row, dict)]:
        raise InputError(f"{path} has {str(wrong[0])[:40]} where a run should be; give a list of objects, or one object a line")
    return rows


def _mlflow(place: str) -> tuple[str, list[Record]]:
    """Return the name of a store and the runs of an experiment, or of all; metrics by their last value."""
    uri, _, experiment = place.partition("#")
    parts = urlsplit(uri)
    path = parts.path[1:] if parts.scheme == "sqlite" else parts.path
    if parts.scheme in ("sqlite", "file", "") and not Path(path).exists():
        raise InputError(f"there is no MLflow store {uri}; give mlflow:sqlite:///FILE, mlflow:FOLDER or mlflow:http://HOST")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 refuses folders to those who would write them
    mlflow = _package("mlflow", "mlflow.tracking")
    from mlflow.exceptions import MlflowException

    rows, token = [], None
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        names = {found.experiment_id: found.name for found in client.search_experiments()}
        if experiment and experiment not in names.values():
            raise InputError(f"{uri} has no experiment '{experiment}'; {nearest(experiment, names.values())}")
        wanted = [key for key, name in names.items() if experiment in ("", name)]
        while token != "":
            page = client.search_runs(wanted, max_results=1000, order_by=["attributes.start_time"], page_token=token)
            rows += [_of_mlflow(run, names) for run in page]
            token = page.token or ""
    except MlflowException as error:
        raise InputError(f"{uri} cannot be read as an MLflow store: {error}") from error
    return f"mlflow:{parts.hostname or Path(path).name}{'#' if experiment else ''}{experiment}", rows


def _of_mlflow(run: Any, experiments: Mapping[str, str]) -> Record:
    info = run.info
    times = {"started_at": info.start_time, "ended_at": info.end_time}  # ms since 1970
    return {
        "mlflow.run_id": info.run_id,
        "mlflow.experiment": experiments[info.experiment_id],
        "status": info.status,
        **{name: datetime.fromtimestamp(ms / 1000, UTC).isoformat() for name, ms in times.items() if ms},
        "params": run.data.params,
        "metrics": run.data.metrics,
        "tags": run.data.tags,
    }


def _wandb(project: str) -> list[Record]:
    if project.count("/") != 1:
        raise InputError(f"wandb:{project}: a project is named ENTITY/PROJECT; give wandb:ENTITY/PROJECT")
    wandb = _package("wandb", "wandb")
    try:
        return [
            {
                "wandb.id": run.id,
                "wandb.name": run.name,
                "status": run.state,
                "started_at": run.created_at,
                "config": run.config,
                "summary": run.summary_metrics,
            }
            for run in wandb.Api().runs(project, lazy=False)
        ]
    except Exception as error:  # of its own, of its service and of the network: they have no base in common
        raise InputError(f"wandb:{project} cannot be read: {error}; `wandb login` says who you are") from error


def _package(extra: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"reading {extra} takes a package that is not installed; pip install 'dataeff[{extra}]'") from error


def _leaves(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, list) else value


def _bare(rows: list[Record]) -> list[Record]:
    """Take the group off a name, such as params.lr, where no other column has what is left; off a tracker's own tags always."""
    columns = {key for row in rows for key in row}
    short = {key: key.partition(".")[2] if key.partition(".")[0] in GROUPS else key for key in columns}
    taken = Counter(short.values())
    return [{short[key] if taken[short[key]] == 1 else key: value for key, value in row.items()} for row in rows]
