"""House rules: layers are kept, the help is complete and quick to come, nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dataeff

PACKAGE = Path(dataeff.__file__).parent
ROOT = PACKAGE.parent

# What each room may import of the package, itself aside. Nothing imports the command line.
LAYERS = {
    "errors": set(),
    "share": {"errors"},
    "specs": {"errors", "share"},
    "facts": {"errors", "specs"},
    "data": {"errors", "specs", "facts"},
    "training": {"errors", "specs", "facts"},
    "work": {"errors", "specs", "facts", "data", "training"},
    "execution": {"errors", "facts", "training"},
    "search": {"errors", "specs"},
    "laws": {"errors"},
    "records": {"errors", "share", "specs", "facts", "search"},
    "study": {"errors", "specs", "facts", "data", "work", "execution", "search", "laws", "records"},
    "reports": {"errors", "share", "specs", "facts", "records", "laws"},
    "notebook": {"errors", "records", "study", "reports"},
    "cli": {"errors", "share", "specs", "facts", "data", "training", "work", "execution", "records", "study", "reports"},
}
HEAVY = ("torch", "duckdb", "sqlmodel", "optuna", "scipy", "tokenizers", "pyarrow", "altair", "numpy")


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("layer", LAYERS)
def test_a_room_imports_only_the_rooms_below_it(layer):
    files = sorted((PACKAGE / layer).rglob("*.py")) or [PACKAGE / f"{layer}.py"]
    for file in files:
        ours = {name.split(".")[1] for name in imported(file) if name.startswith("dataeff.")} - {"__version__"}
        assert ours - {layer} <= LAYERS[layer], file


def test_every_module_stands_in_a_room_and_nothing_of_100_lines_stands_outside():
    for path in PACKAGE.iterdir():
        if path.name not in ("__init__.py", "__main__.py", "__pycache__"):
            assert path.stem in LAYERS, f"{path} is in no room that this test knows"
            assert path.is_dir() or len(path.read_text().splitlines()) < 100, path


def test_records_know_no_torch_and_laws_know_only_numpy_and_scipy():
    for file in (PACKAGE / "records").glob("*.py"):
        assert not any(name.split(".")[0] == "torch" for name in imported(file)), file
    allowed = {"numpy", "scipy", "dataeff", *sys.stdlib_module_names}
    for file in (PACKAGE / "laws").glob("*.py"):
        assert {name.split(".")[0] for name in imported(file)} <= allowed, file


def test_nothing_imports_the_command_line():
    for file in [p for p in (*PACKAGE.rglob("*.py"), *(ROOT / "app").rglob("*.py")) if p.name != "__main__.py"]:
        if (PACKAGE / "cli") not in file.parents:
            assert not any(name.startswith("dataeff.cli") for name in imported(file)), file


def test_nothing_heavy_is_imported_for_the_help():
    code = f"import sys, dataeff.cli; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_help_takes_under_half_a_second():
    def seconds() -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dataeff", "--help"], capture_output=True, check=True)
        return time.perf_counter() - begin

    assert statistics.median(sorted(seconds() for _ in range(5))[:3]) < 0.5


def commands() -> list[str]:
    import typer

    from dataeff.cli import app

    return sorted(typer.main.get_command(app).commands)


@pytest.mark.parametrize("command", commands())
def test_every_command_has_an_example_in_its_help_and_a_line_in_the_readme(command):
    """And its first sentence is whole in the list of commands."""
    listed = subprocess.run([sys.executable, "-m", "dataeff", "--help"], capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^  {command}  +\S.*\.$", listed, re.MULTILINE) and "..." not in listed.partition("Commands:")[2]
    out = subprocess.run([sys.executable, "-m", "dataeff", command, "--help"], capture_output=True, text=True, check=True)
    assert f"dataeff {command}" in out.stdout
    assert f"dataeff {command}" in (ROOT / "README.md").read_text()


def test_the_readme_has_under_200_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_every_relative_link_of_the_readmes_leads_somewhere():
    for readme in [ROOT / "README.md", ROOT / "db" / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", readme.read_text()):
            if not target.startswith("http"):
                assert (readme.parent / target).exists(), f"{readme}: {target}"
