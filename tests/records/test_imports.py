"""Results trained elsewhere: they become runs that the views answer on, once, or are refused with the rows and columns named."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dataeff.errors import InputError, QueryError
from dataeff.records.exchange import export_study, import_study
from dataeff.records.imports import Import, import_runs, record_import
from dataeff.records.sources import read_source
from dataeff.records.store import Database
from dataeff.study.fits import renew_fits
from tests.conftest import dataeff, write_tiny_study

ROOT = Path(__file__).parent.parent.parent
PUBLISHED = Path(__file__).parent / "published_209m.csv"
NOMINAL = {"parameters_total": "parameters_nominal"}
HEADER = "recipe,seed_tokens,parameters_total,lr,weight_decay,epochs,train_seed,val_loss"
GRID = [  # one cell of 3 x 3 learning rates and weight decays, best in the middle and run there under a second seed
    f"tuned,1000000,300000000,{lr},{decay},8,0,{3 + abs(i) / 10 + abs(j) / 20}"
    for i, lr in ((-1, 0.001), (0, 0.003), (1, 0.01))
    for j, decay in ((-1, 0.1), (0, 0.4), (1, 1.6))
] + ["tuned,1000000,300000000,0.003,0.4,8,1,3.01"]


@pytest.fixture
def database(tmp_path) -> Database:
    return Database(tmp_path / "dataeff.duckdb")


def rows(database: Database, query: str) -> list[tuple]:
    with database.read() as connection:
        return connection.execute(query).fetchall()


def everything(database: Database) -> dict[str, list[tuple]]:
    tables = [name for (name,) in rows(database, "SELECT table_name FROM duckdb_tables()")]
    return {table: rows(database, f"SELECT * FROM {table} ORDER BY ALL") for table in tables}


def csv(folder: Path, lines: list[str], header: str = HEADER, name: str = "runs.csv") -> Path:
    (folder / name).write_text("\n".join([header, *lines]) + "\n")
    return folder / name


def bring(database: Database, source: object, study: str = "mine", **options) -> dict[str, int]:
    return import_runs(database, read_source(str(source)), Import(study, **options))


def record(database: Database, study: str = "mine") -> dict[str, int]:
    with database.write() as connection:
        return record_import(connection, database.path.with_suffix(".files") / "imports" / study)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def readme() -> list[list[str]]:
    """The words of each command of docs/import.md."""
    section = (ROOT / "docs" / "import.md").read_text()
    blocks = "".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL)).replace("\\\n", "")
    return [shlex.split(line)[1:] for line in blocks.splitlines()]


def test_the_readme_imports_the_published_results_and_answers_on_them(tmp_path):
    (tmp_path / "tests" / "records").mkdir(parents=True)
    shutil.copy(PUBLISHED, tmp_path / "tests" / "records")
    imported = dataeff(*readme()[0], cwd=tmp_path)
    assert imported.returncode == 0, imported.stderr
    assert re.search(r"new runs +6", imported.stdout)
    limit = "SELECT limit_loss FROM asymptote WHERE recipe = 'standard'"
    assert rows(Database(tmp_path / "dataeff.duckdb"), limit) == [(3.74974,)]
    answer = dataeff(*readme()[1], cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "3.750 nats/token" in answer.stdout
    assert "no data law: a law with three parameters needs 3 points; there is 1" in answer.stdout


def test_the_readme_imports_a_table_of_weights_and_biases(tmp_path):
    header = '"Name","State","Created","Runtime","Sweep","learning_rate","epochs","tokens (M)","val/loss","_step"'
    csv(tmp_path, ['"brave-1","finished","2024-01-01T00:00:00.000Z",120,"",0.001,8,1.5,3.5,10'], header, "wandb.csv")
    done = dataeff(*readme()[2], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert rows(Database(tmp_path / "dataeff.duckdb"), "SELECT lr, seed_tokens FROM run") == [(0.001, 1_500_000)]


def test_importing_again_changes_nothing_wherever_the_file_lies(database, tmp_path):
    bring(database, PUBLISHED, columns=NOMINAL)
    before, on_disk = everything(database), files(tmp_path / "dataeff.files")
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(PUBLISHED, tmp_path / "elsewhere")
    assert bring(database, moved, columns=NOMINAL) == {"new runs": 0, "runs already there": 6, "cells": 6}
    assert everything(database) == before
    assert files(tmp_path / "dataeff.files") == on_disk


def test_ids_of_imported_runs_stay_what_they_are(database, tmp_path):
    bring(database, PUBLISHED, "published", columns=NOMINAL)
    timed = csv(tmp_path, ["a,1000,300,3.0,2024-01-01 10:00:00,7"], "recipe,seed_tokens,N,val_loss,started_at,_note")
    bring(database, timed, columns={"parameters_total": "N"})
    ids = dict(rows(database, "SELECT val_loss, run_id FROM run"))
    assert (ids[3.83752], ids[3.0]) == ("7111738275680661", "181cb017a3c211d2")


def test_the_folder_of_an_import_is_enough_to_make_every_row_again(database, tmp_path):
    lines = [f"{line},finished,2024-01-01 10:00:00,note" for line in GRID] + ["tuned,1,2,0.1,0.1,8,0,3,running,,"]
    source = csv(tmp_path, lines, f"{HEADER},status,started_at,_note")
    counts = bring(database, source, baseline="tuned", limits={"tuned": "N"}, where="seed_tokens < 1e9")
    before = everything(database)
    database.path.unlink()
    assert record(database) == counts
    after = everything(database)
    assert {table for table in before if before[table] != after[table]} <= {"schema"}
    assert record(database) == {**counts, "new runs": 0, "runs already there": len(GRID)}
    assert everything(database) == after
    assert rows(database, "SELECT started_at = updated_at FROM study") == [(True,)]


def test_another_import_of_a_study_replaces_its_folder(database, tmp_path):
    bring(database, csv(tmp_path, GRID))
    bring(database, csv(tmp_path, GRID[:4]))
    before = everything(database)
    assert [path.name for path in (tmp_path / "dataeff.files" / "imports").iterdir()] == ["mine"]
    assert record(database)["runs already there"] == 4
    assert everything(database) == before
    database.path.unlink()
    assert record(database)["new runs"] == 4


def test_bad_input_changes_no_file(database, tmp_path):
    source = csv(tmp_path, GRID)
    bring(database, source)
    bad = csv(tmp_path, [*GRID, "tuned,0,1,1,1,1,1,1"], name="bad.csv")
    before, kept = files(tmp_path), everything(database)
    for study in ("mine", "other"):
        with pytest.raises(InputError, match="row 11: seed_tokens = 0"):
            bring(database, bad, study)
        for options in ({"where": "nothing = 1"}, {"baseline": "x"}, {"ignored": ["x"]}, {"columns": {"lr": "nothing(epochs)"}}):
            with pytest.raises(InputError):
                bring(database, source, study, **options)
    assert files(tmp_path) == before
    assert everything(database) == kept


def test_a_folder_that_is_not_whole_is_named(database, tmp_path):
    bring(database, csv(tmp_path, GRID))
    before = everything(database)
    (tmp_path / "dataeff.files" / "imports" / "mine" / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="imports/mine cannot be read as an import.*import mine again"):
        record(database)
    assert everything(database) == before


def test_a_table_gives_the_same_runs_in_every_format(database, tmp_path):
    import duckdb

    first = csv(tmp_path, GRID)
    bring(database, first)
    for suffix, options in (
        (".parquet", ""),
        (".json", "(ARRAY true)"),
        (".jsonl", "(FORMAT json)"),
        (".tsv", "(DELIMITER '\t')"),
    ):
        duckdb.execute(f"COPY (FROM '{first}') TO '{first.with_suffix(suffix)}' {options}")
        assert bring(database, first.with_suffix(suffix), suffix[1:])["runs already there"] == len(GRID)
    assert rows(database, "SELECT DISTINCT source FROM run") == [("runs.csv",)]


def test_a_column_without_a_place_is_refused_with_what_to_add_and_nothing_changes(database, tmp_path):
    bring(database, PUBLISHED, columns=NOMINAL)
    before = everything(database)
    source = csv(
        tmp_path, ["standard,1,2,3.1,0.1,x"], "recipe,seed_tokens,parameters_nominal,val loss,learning_rate,my notes [all]"
    )
    with pytest.raises(InputError) as refused:
        bring(database, source)
    for said in (
        "it has columns that no column of run is named as; add --map parameters_total=parameters_nominal ",
        "--map 'val_loss=val loss' --map lr=learning_rate ",
        "--ignore 'my notes [all]'. Nothing was imported",
    ):
        assert said in str(refused.value)
    assert everything(database) == before
    columns = {"parameters_total": "parameters_nominal", "val_loss": "val loss", "lr": "learning_rate"}
    assert bring(database, source, columns=columns, ignored=["my notes [all]"])["new runs"] == 1


def test_a_refused_import_makes_no_database(database):
    with pytest.raises(InputError, match="parameters_nominal"):
        bring(database, PUBLISHED)
    assert not database.path.exists()


def test_a_full_grid_gets_a_certificate_and_its_noise(database, tmp_path):
    bring(database, csv(tmp_path, GRID))
    assert rows(database, "SELECT state, neighbours_run, lr, weight_decay FROM certificate JOIN best_run USING (cell_id)") == [
        ("certified", 4, 0.003, 0.4)
    ]
    assert rows(database, "SELECT role, count(*) FROM trial GROUP BY ALL ORDER BY ALL") == [("replicate", 1), ("search", 9)]
    assert rows(database, "SELECT size, seeds, val_loss_mean FROM best_run") == [("300M", 1, 3.01)]
    assert rows(database, "SELECT degrees_of_freedom FROM noise") == [(1,)]


def test_one_point_alone_is_open_and_a_point_on_the_edge_a_boundary(database, tmp_path):
    bring(database, csv(tmp_path, [GRID[4]]), "lone")
    bring(database, csv(tmp_path, GRID[4:6]), "edge")
    bring(database, csv(tmp_path, ["tuned,1000,300,3.0"], "recipe,seed_tokens,parameters_total,val_loss"), "axisless")
    found = dict(rows(database, "SELECT study, (state, reason) FROM certificate"))
    unknown = ("open", "one point was imported; what was searched around it is not known")
    assert found["lone"] == found["axisless"] == unknown
    assert found["edge"][0] == "boundary"


def test_laws_and_data_efficiency_follow_from_imported_runs(database, tmp_path):
    lines = [
        f"{recipe},{d},{n},{a * 2 / (d / 1e6) ** 0.5 + 0.1 / (n / 1e9) + 2}"
        for recipe, a in (("standard", 1), ("better", 0.5))
        for d in (10**6, 10**7, 10**8)
        for n in (10**8, 10**9, 10**10)
    ]
    limits = {"standard": "N", "better": "N"}
    source = csv(tmp_path, lines, "recipe,seed_tokens,parameters_total,val_loss")
    bring(database, source, baseline="standard", limits=limits, question="Twice?")
    renew_fits(database)
    assert rows(database, "SELECT DISTINCT round(data_efficiency, 2) FROM data_efficiency WHERE recipe = 'better'") == [(4.0,)]
    assert rows(database, "SELECT question, json_keys(spec, '$.recipes') FROM study") == [("Twice?", ["standard", "better"])]


def test_a_corrected_table_replaces_the_trials_and_leaves_the_runs(database, tmp_path):
    bring(database, csv(tmp_path, GRID))
    wrong, corrected = GRID[0], GRID[0].rsplit(",", 1)[0] + ",2.9"
    counts = bring(database, csv(tmp_path, [corrected, *GRID[1:-1]]))
    assert (counts["new runs"], counts["runs already there"]) == (1, 8)
    assert rows(database, "SELECT count(*) FROM run") == [(len(GRID) + 1,)]
    assert rows(database, "SELECT role, count(*) FROM trial GROUP BY ALL") == [("search", 9)]
    assert rows(database, "SELECT val_loss, state FROM best_run JOIN certificate USING (cell_id)") == [(2.9, "boundary")]
    assert float(wrong.rsplit(",", 1)[1]) in [loss for (loss,) in rows(database, "SELECT val_loss FROM run")]


def test_rows_that_are_added_leave_the_other_runs_what_they_were(database, tmp_path):
    """Also where they turn a column of numbers into one of text, or bring a column of their own."""
    header, known = "recipe,seed_tokens,parameters_total,val_loss,note", "a,1000,300,3.0,7"
    bring(database, csv(tmp_path, [known], header), ignored=["note"])
    added = csv(tmp_path, [f"{known},", "a,1000,400,3.1,seven,x"], f"{header},more")
    assert bring(database, added, ignored=["note", "more"]) == {"new runs": 1, "runs already there": 1, "cells": 2}


def test_a_column_mapped_otherwise_makes_other_runs(database, tmp_path):
    header = "recipe,seed_tokens,parameters_total,train loss,final"
    source = csv(tmp_path, ["a,1000,300,2.0,3.0"], header)
    bring(database, source, columns={"val_loss": "train loss"}, ignored=["final"])
    bring(database, source, columns={"val_loss": "final"}, ignored=["train loss"])
    assert rows(database, "SELECT val_loss FROM run ORDER BY ALL") == [(2.0,), (3.0,)]
    assert rows(database, "SELECT val_loss FROM best_run") == [(3.0,)]


def test_a_table_of_weights_and_biases_comes_in_with_units_and_states(database, tmp_path):
    """As the export of a project's runs table has them."""
    header = (
        '"Name","State","ID","Created","Runtime","learning_rate","weight_decay","epochs","seed","tokens (M)","val/loss","_step"'
    )
    table = [
        '"brave-1","finished","1e5","2024-01-01T00:00:00.000Z",120,0.001,0.1,8,0,1.5,3.5,10',
        '"brave-2","finished","12","2024-01-01T00:00:00.000Z",120,0.003,0.1,8,0,1.5,NaN,10',
        '"brave-3","crashed","13","2024-01-01T00:00:00.000Z",20,0.01,0.1,8,0,1.5,,10',
        '"brave-4","running","14","2024-01-01T00:00:00.000Z",20,0.01,0.1,8,0,1.5,9,10',
    ]
    columns = {"status": "State", "started_at": "Created", "wall_seconds": "Runtime", "lr": "learning_rate", "train_seed": "seed"}
    columns |= {"seed_tokens": '"tokens (M)" * 1e6', "recipe": "'standard'", "parameters_total": "3e8", "val_loss": "val/loss"}
    counts = bring(database, csv(tmp_path, table, header), columns=columns, ignored=["N*", "ID"])
    assert counts["left out: status crashed"] == counts["left out: status running"] == 1
    found = rows(
        database,
        """SELECT status, reason, seed_tokens, lr, val_loss, wall_seconds, started_at = TIMESTAMPTZ '2024-01-01',
            spec ->> 'Name', spec ->> '_step', corpus FROM run ORDER BY lr""",
    )
    assert found == [
        ("finished", None, 1_500_000, 0.001, 3.5, 120.0, True, "brave-1", "10", None),
        ("diverged", "in runs.csv val_loss is nan", 1_500_000, 0.003, None, 120.0, True, "brave-2", "10", None),
    ]
    assert rows(database, "SELECT runs, diverged FROM best_run") == [(2, 1)]


def test_a_cell_whose_runs_all_diverged_says_so(database, tmp_path):
    bring(database, csv(tmp_path, ["a,1000,300,0.1,nan,finished"], "recipe,seed_tokens,parameters_total,lr,val_loss,status"))
    assert rows(database, "SELECT reason FROM best_run") == [("no finite loss: all 1 runs of 1 points diverged",)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a,0,300,0.1,0.1,8,0,3", "row 2: seed_tokens = 0: it must be greater than 0"),
        ("a,1.5,300,0.1,0.1,8,0,3", "row 2: seed_tokens = 1.5: it must be a valid integer"),
        ("a,1e30,300,0.1,0.1,8,0,3", "row 2: seed_tokens = 1e+30: "),
        ("a,1000,many,0.1,0.1,8,0,3", "row 2: parameters_total = 'many': it must be a valid integer"),
        ("a,1000,300,0.1,0.1,8,0,-3", "row 2: val_loss = -3.0: a cross-entropy is never negative"),
        ("a,1000,300,0.1,0.1,8,0,nan", "row 2: val_loss = nan: it must be finite"),
        ("a,1000,300,0.1,0.1,8,0,", "row 2: val_loss = None: every run needs one"),
        (",1000,300,0.1,0.1,8,0,3", "row 2: recipe = None: every run needs one"),
        ("a,1000,300,inf,0.1,8,0,3", "row 2: lr = inf: it must be finite"),
        ("a,1000,300,,0.1,8,0,3", "row 2: lr is missing, and other rows of recipe a have it"),
        ("a,1000,300,0.1,0.1,8,0,3.1", "row 2: equals row 1"),
    ],
)
def test_a_row_that_cannot_be_a_run_is_named_and_nothing_is_imported(database, tmp_path, line, said):
    with pytest.raises(InputError, match=re.escape(said)):
        bring(database, csv(tmp_path, ["a,1000,300,0.1,0.1,8,0,3.1", line]))
    assert not database.path.exists()


def test_rows_that_do_not_go_together_are_refused(database, tmp_path):
    header = "recipe,seed_tokens,size,parameters_total,lr,batch_size,val_loss"
    with pytest.raises(InputError, match="row 2: parameters_total is 301 and in row 1 300.*map `size`"):
        bring(database, csv(tmp_path, ["a,1000,s,300,0.1,8,3", "a,1000,s,301,0.2,8,3"], header))
    with pytest.raises(InputError, match="row 2: batch_size is 16 and in row 1 8.*two recipes"):
        bring(database, csv(tmp_path, ["a,1000,s,300,0.1,8,3", "a,1000,s,300,0.1,16,3.1"], header))
    with pytest.raises(InputError, match="status = 'sleeping'.*Valid: finished"):
        bring(database, csv(tmp_path, ["a,1,2,3,sleeping"], "recipe,seed_tokens,parameters_total,val_loss,status"))


def test_an_ensembles_loss_is_no_run(database, tmp_path):
    source = csv(tmp_path, ["a,1000,300,1,3.2", "a,1000,300,5,3.0"], "recipe,seed_tokens,parameters_total,K,val_loss")
    with pytest.raises(InputError, match=r"row 2: members = 5.*--where \"\"K\" = 1\""):
        bring(database, source, columns={"members": "K"})
    assert bring(database, source, columns={"members": "K"}, where="K = 1")["new runs"] == 1


def test_mistakes_in_what_was_asked_name_what_would_be_valid(database, tmp_path):
    source = csv(tmp_path, GRID)
    for options, said in (
        ({"columns": {"learnign_rate": "lr"}}, "--map learnign_rate=lr: no such column of run"),
        ({"ignored": ["epoch"]}, "did you mean 'epochs'"),
        ({"baseline": "tunde"}, "--baseline tunde: runs.csv has no such recipe; did you mean 'tuned'"),
        ({"limits": {"tuned": "K"}}, "--limit tuned=K: a limit of single models is 'best'"),
        ({"where": "false"}, "has no row to import"),
        ({"study": "a/b"}, "--study a/b: a study's name"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            bring(database, source, **options)
    for options in ({"columns": {"lr": "learnign_rate"}, "ignored": ["lr"]}, {"where": "learnign_rate = 1"}):
        with pytest.raises(QueryError, match="(?s)learnign_rate.*The columns of runs.csv are: recipe, "):
            bring(database, source, **options)
    with pytest.raises(InputError, match="there is no file nothing.csv"):
        bring(database, "nothing.csv")


def test_a_study_that_was_run_here_is_not_replaced(finished, tmp_path):
    copy = Database(shutil.copy(finished / "dataeff.duckdb", tmp_path))
    before = everything(copy)
    with pytest.raises(InputError, match="study tiny was declared and run here"):
        bring(copy, csv(tmp_path, GRID), "tiny")
    assert everything(copy) == before
    assert not (tmp_path / "dataeff.files").exists()


def test_an_imported_study_is_exported_and_imported_as_any_other(database, tmp_path):
    bring(database, csv(tmp_path, GRID))
    export_study(database, "mine", tmp_path / "out")
    copy = Database(tmp_path / "copy.duckdb")
    import_study(copy, tmp_path / "out")
    answer = "SELECT recipe, limit_loss, certified FROM recipe_summary"
    assert rows(copy, answer) == rows(database, answer)


def test_the_command_tells_exports_from_tables(exported_folder, tmp_path):
    for arguments, said in (
        ([exported_folder, "--study", "mine", "--where", "true"], "leave out all options"),
        ([PUBLISHED], "say with --study NAME"),
        ([PUBLISHED, "--study", "mine", "--map", "lr"], "--map lr: give NAME=VALUE"),
    ):
        done = dataeff("import", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr
    mapped = ["--map", "parameters_total=parameters_nominal"]
    done = dataeff("import", PUBLISHED, "--study", "mine", *mapped, "--format=json", cwd=tmp_path)
    assert {"what": "new runs", "count": 6} in json.loads(done.stdout)


@pytest.fixture
def exported_folder(database, tmp_path) -> Path:
    bring(database, csv(tmp_path, GRID))
    export_study(database, "mine", tmp_path / "exported")
    return tmp_path / "exported"


@pytest.mark.parametrize("kind", ["sqlite", "folder"])
def test_an_mlflow_store_comes_in(database, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}" if kind == "sqlite" else str(tmp_path / "mlruns")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("scaling", artifact_location=str(tmp_path))
    for number, (lr, loss, status) in enumerate(
        ((0.001, 3.5, "FINISHED"), (0.003, float("nan"), "FINISHED"), (0.01, 3.4, "FAILED"), (0.03, 3.3, "RUNNING"))
    ):
        run = client.create_run(experiment, run_name=f"run {number}", tags={"recipe": "standard", "team": "x"}).info.run_id
        for name, value in {"lr": lr, "seed_tokens": 1000, "model.parameters": 300}.items():
            client.log_param(run, name, value)
        for step, value in enumerate((4.0, loss)):
            client.log_metric(run, "val_loss", value, step=step)
        if status != "RUNNING":
            client.set_terminated(run, status)
    options = {"columns": {"parameters_total": "model.parameters"}, "ignored": ["team"]}
    counts = bring(database, f"mlflow:{uri}#scaling", **options)
    assert counts["left out: status failed"] == counts["left out: status running"] == 1
    found = rows(database, "SELECT status, lr, val_loss, ended_at >= started_at, source, spec ->> 'team' FROM run ORDER BY lr")
    name = f"mlflow:{'mlflow.db' if kind == 'sqlite' else 'mlruns'}#scaling"
    assert found == [("finished", 0.001, 3.5, True, name, "x"), ("diverged", 0.003, None, True, name, "x")]
    before = everything(database)
    assert bring(database, f"mlflow:{uri}#scaling", **options)["new runs"] == 0
    assert everything(database) == before
    with pytest.raises(InputError, match="no experiment 'scalign'; did you mean 'scaling'"):
        bring(database, f"mlflow:{uri}#scalign")


def test_a_parameter_and_a_metric_of_one_name_are_told_apart(database, tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    run = client.create_run(client.create_experiment("e", artifact_location=str(tmp_path)), tags={"recipe": "a"}).info.run_id
    for name, value in {"lr": 0.1, "seed_tokens": 1000, "parameters_total": 300}.items():
        client.log_param(run, name, value)
    client.log_metric(run, "val_loss", 3.0)
    client.log_metric(run, "lr", 0.0)
    client.set_terminated(run)
    with pytest.raises(InputError, match="add --map lr=params.lr --ignore metrics.lr"):
        bring(database, f"mlflow:{uri}")
    bring(database, f"mlflow:{uri}", columns={"lr": "params.lr"}, ignored=["metrics.lr"])
    assert rows(database, "SELECT lr FROM run") == [(0.1,)]


def test_a_store_that_is_not_there_is_not_made(database, tmp_path):
    with pytest.raises(InputError, match="there is no MLflow store"):
        bring(database, f"mlflow:sqlite:///{tmp_path}/none.db")
    assert not list(tmp_path.iterdir())


class Wandb(BaseHTTPRequestHandler):
    """What the client of Weights & Biases asks of its server: who is there, and a project's runs, one a page."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "runs(" in asked["query"]:
            number = int(asked["variables"].get("cursor") or 0)
            info = {"hasNextPage": number == 0, "endCursor": str(number + 1)}
            edges = [{"node": self.run_of(number), "cursor": str(number + 1)}]
            found = {"runCount": 2, "readOnly": False, "runs": {"edges": edges, "pageInfo": info}}
            data = {"project": found if asked["variables"]["project"] == "scaling" else None}
        else:
            data = {"viewer": {"id": "1", "entity": "team", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def run_of(self, number: int) -> dict:
        config = {"optimizer": {"lr": 0.001, "name": "adamw"}, "seed_tokens": 1000, "parameters_total": 300, "recipe": "standard"}
        known = {"name": f"id{number}", "displayName": f"brave-{number}", "state": ("finished", "crashed")[number]}
        return {
            **{"id": str(number), "projectId": "1", "tags": [], "readOnly": False, "createdAt": "2024-01-01T00:00:00Z", **known},
            "config": json.dumps({name: {"value": value} for name, value in config.items()}),
            "summaryMetrics": json.dumps({"val": {"loss": 3.5}, "_step": 10, "_runtime": 2.5}),
            "systemMetrics": "{}",
        }

    def log_message(self, *_: object) -> None:
        pass


def test_a_project_of_weights_and_biases_comes_in(tmp_path):
    """By its own client, in a process of its own, from a stand-in for its server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Wandb)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "0" * 40, "HOME": str(tmp_path)}
    environment |= {"WANDB_ERROR_REPORTING": "false", "WANDB_DIR": str(tmp_path)}
    mapped = ["--map", "lr=optimizer.lr", "--map", "optimizer=optimizer.name", "--map", "val_loss=val.loss"]
    try:
        done = dataeff("import", "wandb:team/scaling", "--study", "mine", *mapped, cwd=tmp_path, **environment)
        lost = dataeff("import", "wandb:team/nothing", "--study", "mine", *mapped, cwd=tmp_path, **environment)
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert re.search(r"left out: status crashed +1", done.stdout)
    found = rows(
        Database(tmp_path / "dataeff.duckdb"), "SELECT lr, optimizer, val_loss, source, spec ->> '$.\"wandb.name\"' FROM run"
    )
    assert found == [(0.001, "adamw", 3.5, "wandb:team/scaling", "brave-0")]
    assert lost.returncode == 2 and "wandb:team/nothing cannot be read" in lost.stderr


def test_a_package_that_is_not_installed_is_named(tmp_path):
    blocked = tmp_path / "wandb.py"
    blocked.write_text("raise ImportError")
    done = dataeff("import", "wandb:team/scaling", "--study", "mine", cwd=tmp_path)
    assert done.returncode == 2 and "pip install 'dataeff[wandb]'" in done.stderr


def test_a_launch_under_the_name_of_an_imported_study_is_refused_and_nothing_changed(database, tmp_path):
    study = write_tiny_study(tmp_path)
    bring(database, csv(tmp_path, GRID), "tiny")
    before = everything(database)
    refused = dataeff("run", study.name, cwd=tmp_path)
    assert refused.returncode == 2
    assert "study tiny of this database was imported from runs.csv" in refused.stderr
    assert everything(database) == before
