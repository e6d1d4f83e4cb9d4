"""Everything the README shows is run: its commands, its study, its Python; and the package works away from its checkout."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import duckdb
import pytest

from dataeff.specs.study import Study
from tests.conftest import TINY, dataeff

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [line.strip().split("  #")[0].strip() for line in README.splitlines() if line.startswith("    dataeff ")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("command", [c for c in dict.fromkeys(COMMANDS) if c not in ("dataeff sql", "dataeff app")])
def test_every_command_of_the_readme_works(finished, command):
    """On the tiny study in place of the quickstart, whose run is a test of its own."""
    (run_id,) = dataeff("runs", "-n", "1", "--columns", "run_id", "--csv", cwd=finished).stdout.split()[1:]
    words = shlex.split(command.replace("quickstart", "tiny.toml").replace(" ID", f" {run_id[:6]}"))
    if words[1] == "status":
        words = [word.removesuffix(".toml") for word in words]
    done = dataeff(*words[1:], cwd=finished)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_study_of_the_readme_is_valid(tmp_path):
    (tmp_path / "mine.toml").write_text(blocks("toml")[0])
    assert len(Study.load(tmp_path / "mine.toml").spec.cells) == 27


def test_the_python_of_the_readme_runs(finished, capsys, monkeypatch):
    """On the tiny study in place of the quickstart's results."""
    monkeypatch.chdir(finished)
    results, study = blocks("python")
    exec(results.replace("quickstart", "tiny"), {})
    exec(study, {})
    assert "27 cells" in capsys.readouterr().out


def test_the_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^    make ([\w-]+)", README, re.MULTILINE)
    assert {"quickstart", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package as a wheel, unpacked away from the checkout; its dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT], check=True)
    (wheel,) = folder.glob("dataeff-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_carries_database_studies_pages_and_corpus(installed, tmp_path):
    for name in ("db/README.md", "db/views/3_laws.sql", "app/answer.py", "studies/quickstart.toml"):
        assert (installed / "dataeff" / "_share" / name).exists(), name
    tiny = TINY.replace('name = "tiny"\npath = "text"', 'name = "state-of-the-union"').replace("[1024, 2048]", "[1024]")
    (tmp_path / "tiny.toml").write_text(tiny.replace("sizes = [", "sizes = [").replace("seeds = [0, 1]", "seeds = [0]"))
    for arguments in (["plan", "quickstart"], ["run", "tiny.toml"], ["answer", "tiny"]):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                f"import sys; sys.path.insert(0, {str(installed)!r}); from dataeff.cli import main; main()",
                *arguments,
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(installed)},
        )
        assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("dataeff.files/runs/*/result.json"))


@pytest.mark.slow
def test_the_quickstart_answers_its_question_and_a_second_run_trains_nothing(tmp_path):
    first = dataeff("run", "quickstart", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    with duckdb.connect(tmp_path / "dataeff.duckdb", read_only=True) as connection:
        states = dict(connection.execute("SELECT state, count(*) FROM certificate GROUP BY ALL").fetchall())
        worth = connection.execute(
            "SELECT data_efficiency_trained FROM data_efficiency WHERE recipe = 'regularized' ORDER BY seed_tokens"
        ).fetchall()
    assert states == {"certified": 27}
    assert len(worth) == 3 and all(ratio > 1.2 for (ratio,) in worth)
    again = dataeff("run", "quickstart", cwd=tmp_path)
    assert again.returncode == 0 and "0 trained" in again.stderr
