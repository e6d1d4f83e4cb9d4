"""Everything the README and docs/ show is run: commands, studies, Python; and the package works away from its checkout."""

from __future__ import annotations

import os
import re
import shlex
import shutil
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


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_every_command_of_the_readme_works_in_the_order_it_is_shown(finished, tmp_path):
    """On the tiny study in place of the quickstart, whose run is a test of its own."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (run_id,) = dataeff("runs", "-n", "1", "--columns", "run_id", "--format", "csv", cwd=tmp_path).stdout.split()[1:]
    for command in COMMANDS:
        if command in ("dataeff sql", "dataeff app"):  # which tests of their own type into and look at
            continue
        words = shlex.split(command.replace("quickstart", "tiny").replace(" ID", f" {run_id[:6]}"))
        done = dataeff(*words[1:], cwd=tmp_path)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout or done.stderr, command
        assert max(map(len, done.stderr.splitlines()), default=0) <= 320, command


def test_the_studies_of_the_readme_are_valid(tmp_path):
    """The quickstart's file, as `init` writes it, with what the README says to change and with its recipes."""
    corpus, recipes = blocks("toml")
    text = (ROOT / "studies" / "quickstart.toml").read_text()
    text = re.sub(r"\n\[corpus\].*?(?=passage_bytes)", lambda match: f"\n{corpus}", text, flags=re.DOTALL)
    text = re.sub(r"\n\[recipes.standard\].*(?=\[resources\])", lambda match: f"\n{recipes}", text, flags=re.DOTALL)
    (tmp_path / "mine.toml").write_text(text)
    spec = Study.load(tmp_path / "mine.toml").spec
    assert len(spec.cells) == 27 and spec.corpus.name == "mine" and list(spec.recipes) == ["standard", "regularized", "ensemble"]


def test_the_python_of_the_readme_and_of_docs_runs(finished, capsys, monkeypatch):
    """On the tiny study in place of the quickstart's results."""
    monkeypatch.chdir(finished)
    for text in (README, *(file.read_text() for file in (ROOT / "docs").glob("*.md"))):
        for code in blocks("python", text):
            exec(code.replace('"quickstart")  #', '"tiny")  #'), {})
    assert "27 cells" in capsys.readouterr().out


def test_the_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    shown = "\n".join(file.read_text() for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    targets = re.findall(r"(?:^    |`)make ([\w-]+)", shown, re.MULTILINE)
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
