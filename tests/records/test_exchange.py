"""Exports and imports: what leaves a database comes into another whole, once, and unchanged."""

from __future__ import annotations

import csv
import shutil

import duckdb
import pytest

from dataeff.errors import InputError, NotFoundError
from dataeff.records.exchange import export_study, import_study
from dataeff.records.store import Database
from dataeff.reports.judge import judged_claims
from dataeff.study.fits import renew_fits
from tests.conftest import dataeff

ANSWER = "SELECT recipe, seed_tokens, limit_loss, best_trained, training_flops FROM recipe_summary ORDER BY ALL"


def rows(database: Database, query: str = ANSWER) -> list[tuple]:
    with database.read() as connection:
        return connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """(database, folder): the finished tiny study and its Parquet export."""
    database, folder = Database(finished / "dataeff.duckdb"), tmp_path_factory.mktemp("export") / "tiny"
    export_study(database, "tiny", folder)
    return database, folder


def test_an_import_answers_as_the_database_it_came_from(exported, tmp_path):
    database, folder = exported
    copy = Database(tmp_path / "copy.duckdb")
    added = import_study(copy, folder)
    renew_fits(copy)
    for old, new in zip(rows(database), rows(copy), strict=True):
        assert new[:2] == old[:2] and new[2:] == pytest.approx(old[2:])
    for table, count in added.items():
        assert rows(copy, f"SELECT count(*) FROM {table}") == [(count,)] == rows(database, f"SELECT count(*) FROM {table}")


def test_importing_again_changes_nothing(exported, tmp_path):
    copy = Database(tmp_path / "copy.duckdb")
    import_study(copy, exported[1])
    before = rows(copy, "SELECT sum(value), count(*) FROM metric")
    assert set(import_study(copy, exported[1]).values()) == {0}
    assert rows(copy, "SELECT sum(value), count(*) FROM metric") == before


def test_results_without_their_curves_come_in_too(exported, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    for file in exported[1].iterdir():
        if file.stem not in ("metric", "attempt"):
            (small / file.name).write_bytes(file.read_bytes())
    copy = Database(tmp_path / "copy.duckdb")
    assert "metric" not in import_study(copy, small)
    assert len(rows(copy)) == len(rows(exported[0]))


def test_a_study_that_asks_for_something_else_is_refused_and_nothing_changed(exported, tmp_path):
    copy = Database(tmp_path / "copy.duckdb")
    import_study(copy, exported[1])
    with copy.write() as connection:
        connection.execute("UPDATE study SET spec = '{}'")
        connection.execute("DELETE FROM cell")
    with pytest.raises(InputError, match="name another database"):
        import_study(copy, exported[1])
    assert rows(copy, "SELECT count(*) FROM cell") == [(0,)]


def test_a_duckdb_export_is_a_database_of_one_study(exported, tmp_path):
    export_study(exported[0], "tiny", tmp_path / "tiny.duckdb")
    with duckdb.connect(tmp_path / "tiny.duckdb", read_only=True) as connection:
        assert connection.execute(ANSWER).fetchall() == rows(exported[0])


def test_a_csv_export_can_be_read_by_anything(exported, tmp_path):
    counts = export_study(exported[0], "tiny", tmp_path / "tiny.csv")
    with open(tmp_path / "tiny.csv" / "run.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == counts["run"]
    assert {float(row["val_loss"]) for row in read} == {loss for (loss,) in rows(exported[0], "SELECT val_loss FROM run")}


def test_an_export_overwrites_nothing_and_names_what_it_cannot_find(exported, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="overwrites nothing"):
        export_study(exported[0], "tiny", tmp_path / "mine")
    with pytest.raises(NotFoundError, match="did you mean 'tiny'"):
        export_study(exported[0], "tniy", tmp_path / "new")
    with pytest.raises(NotFoundError, match="no export of a study"):
        import_study(exported[0], tmp_path / "mine")


def test_the_commands_say_what_they_did(exported, tmp_path):
    done = dataeff("import", exported[1], cwd=tmp_path)
    assert done.returncode == 0 and "metric" in done.stdout
    done = dataeff("import", "laptp", cwd=tmp_path)
    assert done.returncode == 2 and "did you mean 'laptop'" in done.stderr
    done = dataeff("export", "tiny", "out", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "out" / "run.parquet").is_file()


def test_the_results_that_come_along_are_those_of_their_study_and_answer_it(tmp_path):
    from dataeff.share import shared_folder

    copy = Database(tmp_path / "copy.duckdb")
    import_study(copy, shared_folder("studies") / "laptop")
    assert rows(copy, "SELECT text FROM study") == [((shared_folder("studies") / "laptop.toml").read_text(),)]
    for tokens in (16384, 32768, 65536, 131072):
        found = dict(rows(copy, f"SELECT recipe, best_trained FROM recipe_summary WHERE seed_tokens = {tokens}"))
        assert found["ensemble"] < found["distilled"] < found["regularized"] < found["standard"]
    with copy.read() as connection:
        verdicts = {row[0]: row[2] for row in judged_claims(connection, "laptop")[1]}
    assert verdicts == {"regularization": "undecided", "ensembles": "supported", "distillation": "supported"}


def test_the_results_that_come_along_answer_as_they_did_when_they_were_trained(tmp_path):
    from dataeff.share import shared_folder

    copy = Database(tmp_path / "copy.duckdb")
    import_study(copy, shared_folder("studies") / "laptop")
    renew_fits(copy)
    limits = dict(rows(copy, "SELECT recipe, limit_loss FROM asymptote WHERE seed_tokens = 32768 AND limit_loss IS NOT NULL"))
    assert limits == pytest.approx(
        {
            "standard": 3.665,
            "regularized": 3.353,
            "ensemble": 3.347,
            "distilled": 3.438,
        },
        abs=1e-3,
    )
    states = dict(rows(copy, "SELECT state, count(*) FROM certificate GROUP BY ALL"))
    assert states == {"certified": 21, "boundary": 19}


@pytest.mark.parametrize("name", ["tiny.csv", "tiny.duckdb"])
def test_every_form_of_an_export_comes_back_the_same(exported, tmp_path, name):
    direct, copy = Database(tmp_path / "direct.duckdb"), Database(tmp_path / "copy.duckdb")
    import_study(direct, exported[1])
    export_study(exported[0], "tiny", tmp_path / name)
    added = import_study(copy, tmp_path / name)
    assert added["run"] and set(import_study(copy, tmp_path / name).values()) == {0}
    for table in added:
        assert rows(copy, f"SELECT * FROM {table} ORDER BY ALL") == rows(direct, f"SELECT * FROM {table} ORDER BY ALL")
    assert rows(copy, "SELECT * FROM run ORDER BY ALL") == rows(exported[0], "SELECT * FROM run ORDER BY ALL")


def test_an_edited_cell_comes_in_where_the_study_was_not_launched(exported, tmp_path):
    copy, edited = Database(tmp_path / "copy.duckdb"), tmp_path / "edited"
    import_study(copy, exported[1])
    shutil.copytree(exported[1], edited)
    cells = f"FROM '{exported[1]}/cell.parquet'"
    duckdb.execute(f"COPY (SELECT * REPLACE ('checked by hand' AS reason) {cells}) TO '{edited}/cell.parquet'")
    assert import_study(copy, edited)["cell"] == rows(copy, "SELECT count(*) FROM cell")[0][0]
    assert rows(copy, "SELECT DISTINCT reason FROM cell") == [("checked by hand",)]
    assert set(import_study(copy, edited).values()) == {0}
    launched = Database(shutil.copytree(exported[0].path.parent, tmp_path / "launched") / exported[0].path.name)
    before = rows(launched, "FROM cell ORDER BY ALL")
    import_study(launched, edited)
    assert rows(launched, "FROM cell ORDER BY ALL") == before
