"""What a launch writes down, gathered and written in few, short transactions.

The launch says what happened; `flush` writes it. What could not be written yet stays gathered, and what is lost with
the process is found again in the run folders. Nothing here decides what is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dataeff.errors import StudyError
from dataeff.records.ingest import (
    ingest,
    ingest_ensembles,
    ingest_samples,
    record_cell_ensembles,
    record_cells,
    record_study,
    record_trials,
    take_out,
)
from dataeff.records.queries import recorded_ensembles, recorded_losses
from dataeff.records.store import Database
from dataeff.specs.demand import Demand
from dataeff.specs.ensemble import EnsembleResult
from dataeff.specs.grid import Point
from dataeff.specs.identity import identity
from dataeff.specs.result import RunFolder
from dataeff.specs.run import TRAINER_VERSION
from dataeff.specs.study import Cell, Study

FIRST_WRITE_SECONDS = 60.0


class Recorder:
    """Gathers runs, trials and cells of one study for the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._folders: dict[Path, RunFolder] = {}
        self._trials: list[dict[str, Any]] = []
        self._ensembles: list[dict[str, Any]] = []
        self._cells: dict[str, dict[str, Any]] = {}
        self._changed: set[str] = set()  # cells whose row is not written as it stands
        self._corpus: dict[str, str] = {}
        self._ended: dict[str, datetime | None] = {}  # when a search ended in an earlier launch
        self.taken_out = 0

    def begin(self, study: Study, demand: Demand, corpus_name: str) -> tuple[dict[str, float], dict[str, EnsembleResult]]:
        """Record the study and its cells; return the loss of every recorded run on the corpus (inf: diverged), and ensembles.

        Of a study that asks for other runs than when it was last launched, the cells and trials are taken out, to be
        recorded anew as the search goes on (`taken_out` counts the cells); runs stay.
        Raises `DatabaseError` when the database cannot be written, `StudyError` for the name of an imported study.
        """
        spec, corpus = study.spec, demand.corpus
        self._corpus = {corpus: corpus_name}
        for cell in spec.cells:
            model, recipe = spec.model(cell.size, demand.vocabulary), spec.recipes[cell.recipe]
            self._cells[cell.id] = {
                "cell_id": cell.id,
                "study": spec.name,
                "recipe": cell.recipe,
                "recipe_limit": recipe.limit,
                "objective": recipe.objective,
                "averaging": recipe.averaging,
                "members": recipe.members,
                "base": cell.base,
                "teacher": cell.teacher,
                "seed_tokens": cell.seed_tokens,
                "size": cell.size.name,
                "parameters_total": model.parameters_total,
                "parameters_non_embedding": model.parameters_non_embedding,
                **_grid(cell),
                "starts": [],
                "note": None,
                "search_ended_at": None,
                "search_stopped": None,
            }
        declared = spec.model_dump(mode="json", exclude={"question", "baseline"}, exclude_defaults=True)
        asked = {"spec": declared, "corpus": corpus, "trainer": TRAINER_VERSION}
        with self._database.write(FIRST_WRITE_SECONDS) as connection:
            known = connection.execute("SELECT asks, spec ->> 'imported_from' FROM study WHERE name = $1", [spec.name]).fetchone()
            if known is not None and known[1] is not None:
                raise StudyError(
                    f"study {spec.name} of this database was imported from {known[1]}, and a launch would replace it; give this "
                    "study another name, or name another file with --database"
                )
            if known is not None and known[0] != identity(asked):
                self.taken_out = take_out(connection, spec.name)
            record_study(
                connection, spec.name, spec.question, spec.baseline, study.source, spec.model_dump(mode="json"), identity(asked)
            )
            ended = connection.execute("SELECT cell_id, search_ended_at FROM cell WHERE study = $1", [spec.name]).fetchall()
            self._ended = dict(ended)
            record_cells(connection, [row for cell_id, row in self._cells.items() if cell_id not in self._ended])
            return recorded_losses(connection, corpus), recorded_ensembles(connection, corpus)

    def fact(self, folder: RunFolder) -> None:
        """The folder of a run, an ensemble or samples has news: a result, or an attempt at a run that ended."""
        self._folders[folder.path] = folder

    def ensemble(self, cell: Cell, ensemble_id: str, number: int, point: Point) -> None:
        """A cell has used an ensemble: of the members of a point of its search."""
        self._ensembles.append({"cell_id": cell.id, "ensemble_id": ensemble_id, "number": number, "coordinates": list(point)})

    def trial(self, cell: Cell, run_id: str, role: str, number: int, point: Point) -> None:
        """A cell has used a run: as a point of its search, or to repeat its optimum under another seed."""
        self._trials.append({"cell_id": cell.id, "run_id": run_id, "role": role, "number": number, "coordinates": list(point)})

    def search_opened(self, cell: Cell, starts: Sequence[Point], note: str | None) -> None:
        """A cell's search has begun, on this grid, at these points; `note` says what is unusual about them."""
        self._change(cell, {**_grid(cell), "starts": [list(point) for point in starts], "note": note})

    def note(self, cell: Cell, said: str) -> None:
        """Something about a cell that its row should say, besides what it says already."""
        before = self._cells[cell.id]["note"]
        self._change(cell, {"note": f"{before}; {said}" if before else said})

    def search_ended(self, cell: Cell, stopped: str | None) -> None:
        """A cell's search has ended; `stopped` says why, when it was not by its certificate."""
        before = None if stopped else self._ended.get(cell.id)  # a search that is only replayed ended when it first did
        self._change(cell, {"search_ended_at": before or datetime.now(UTC), "search_stopped": stopped})

    def _change(self, cell: Cell, values: Mapping[str, Any]) -> None:
        self._cells[cell.id] |= values
        self._changed.add(cell.id)

    def flush(self, timeout: float) -> None:
        """Write what has been gathered, in one transaction. Raises `DatabaseBusyError` after `timeout` seconds, keeping it."""
        if not (self._folders or self._trials or self._ensembles or self._changed):
            return
        of_kind: dict[str, list[RunFolder]] = {"runs": [], "ensembles": [], "samples": []}
        for folder in self._folders.values():
            of_kind[folder.path.parent.name].append(folder)
        with self._database.write(timeout) as connection:
            ingest(connection, of_kind["runs"], self._corpus)
            ingest_ensembles(connection, of_kind["ensembles"])
            ingest_samples(connection, of_kind["samples"])
            record_trials(connection, self._trials)
            record_cell_ensembles(connection, self._ensembles)
            record_cells(connection, [self._cells[cell_id] for cell_id in self._changed])
        self._folders, self._trials, self._ensembles, self._changed = {}, [], [], set()


def _grid(cell: Cell) -> dict[str, Any]:
    return {"axes": {name: list(values) for name, values in cell.grid.axes.items()}, "shape": list(cell.grid.shape)}
