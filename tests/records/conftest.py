"""An empty database, its store, and cells with losses of one's choosing."""

from __future__ import annotations

import itertools
import json

import pytest
from folders import NOW, RUN

from dataeff.facts.store import Store
from dataeff.records.ingest import record_cells, record_fits, record_study
from dataeff.records.store import Database
from dataeff.search.coordinate_descent import certificate
from dataeff.specs.grid import Grid
from dataeff.study.fits import ensemble_rows, stale_ensembles, stale_studies, study_rows


@pytest.fixture
def database(tmp_path) -> Database:
    return Database(tmp_path / "results.duckdb")


@pytest.fixture
def store(database) -> Store:
    return Store.beside(database.path)


class Recorded:
    """Writes cells whose points have the losses it is given; `math.inf` is a diverged run."""

    def __init__(self, connection) -> None:
        self._connection = connection
        self.numbers = itertools.count()
        self.changed: set[str] = set()

    def study(self, name: str = "study", baseline: str = "standard") -> None:
        row = {"name": name, "question": "which?", "baseline": baseline, "text": "text", "spec": {}}
        record_study(self._connection, row | {"started_at": NOW, "updated_at": NOW})

    def cell(
        self,
        losses,
        axes=None,
        study="study",
        recipe="standard",
        limit="N",
        seed_tokens=1_000_000,
        parameters=10**9,
        replicates=(),
        objective="single",
        averaging="logits",
        members=1,
        teacher=None,
    ) -> str:
        """Record a cell and return its id. `losses`: by coordinates; `replicates`: further (coordinates, loss)."""
        axes = axes or {"lr": [1e-3]}
        if not self._connection.execute("FROM study WHERE name = $1", [study]).fetchall():
            self.study(study)
        cell_id = f"{study}/{recipe}/{seed_tokens}/{parameters}"
        row = {
            "cell_id": cell_id,
            "study": study,
            "recipe": recipe,
            "recipe_limit": limit,
            "objective": objective,
            "averaging": averaging,
            "members": members,
            "teacher": teacher,
            "seed_tokens": seed_tokens,
            "size": f"n{parameters}",
            "parameters_total": parameters,
            "parameters_non_embedding": parameters,
            "axes": axes,
            "shape": [len(values) for values in axes.values()],
            "starts": [],
            "state": "searching",
            "reason": "no run of the search has finished",
            "origin": cell_id,
        }
        record_cells(self._connection, [row])
        for coordinates, loss in losses.items():
            self.trial(cell_id, "search", coordinates, loss)
        for coordinates, loss in replicates:
            self.trial(cell_id, "replicate", coordinates, loss)
        return cell_id

    @property
    def connection(self):
        """The connection, once the laws of ensembles are stored, and the certificates of the cells whose points have changed."""
        if self.changed:
            self._renew(stale_ensembles, ensemble_rows)
            points = """SELECT cell_id, coordinates, coalesce(objective_loss, 'inf') FROM grid_point
                WHERE list_contains($1, cell_id)"""
            results = {cell_id: {} for cell_id in self.changed}
            for cell_id, coordinates, loss in self._connection.execute(points, [list(self.changed)]).fetchall():
                results[cell_id][tuple(coordinates)] = loss
            for cell_id in self.changed:
                self._certify(cell_id, results[cell_id])
            self.changed = set()
        return self._connection

    def _certify(self, cell_id: str, results) -> None:
        (axes,) = self._connection.execute("SELECT axes FROM cell WHERE cell_id = $1", [cell_id]).fetchone()
        grid = Grid({name: tuple(values) for name, values in json.loads(axes).items()})
        made = certificate(results, grid)
        near = [] if made.best is None else [point for point in grid.neighbours(made.best) if point in results]
        values = {
            "state": made.state if results else "searching",
            "reason": made.reason,
            "best": made.best,
            "best_loss": made.loss,
            "margin": None if made.margin == float("inf") else made.margin,
            "ties": None if made.best is None else made.ties,
            "neighbours_run": None if made.best is None else len(near),
            "neighbours_missing": None if made.best is None else list(map(list, made.missing)),
            "edges": None if made.best is None else [" ".join(edge) for edge in made.edges],
        }
        changed = ", ".join(f"{name} = ${i}" for i, name in enumerate(values, 2))
        self._connection.execute(f"UPDATE cell SET {changed} WHERE cell_id = $1", [cell_id, *values.values()])

    def ensemble(self, cell_id: str, coordinates, losses, members: int = 4, singles=3.5, averaging="logits") -> str:
        """Record an ensemble at a point, its members too, and return its id. `losses`: from a subset's places to its loss.

        `singles` is the loss of every member by itself, or one for each. Of `weights` only the prefixes are evaluated.
        """
        singles = singles if isinstance(singles, list) else [singles] * members
        roles = ["search", *["member"] * (members - 1)]
        ids = [self.trial(cell_id, role, coordinates, loss) for role, loss in zip(roles, singles, strict=True)]
        ensemble_id = f"ensemble {ids[0]}"
        self._connection.execute("INSERT INTO ensemble VALUES ($1, 'c', $2, 4, 'float32', 1, 'd')", [ensemble_id, ids])
        subsets = [s for k in range(1, members + 1) for s in itertools.combinations(range(members), k)]
        kept = [s for s in subsets if averaging != "weights" or s == tuple(range(len(s)))]
        rows = [[ensemble_id, i, averaging, list(s), losses(s)] for i, s in enumerate(kept)]
        self._connection.executemany("INSERT INTO ensemble_loss VALUES ($1, $2, $3, $4, $5)", rows)
        row = [cell_id, ensemble_id, len(ids), list(coordinates)]
        self._connection.execute("INSERT INTO cell_ensemble VALUES ($1, $2, 'member', 0, $3, $4)", row)
        return ensemble_id

    def trial(self, cell_id: str, role: str, coordinates, loss: float) -> str:
        """Record a run and its trial; return the run id."""
        self.changed.add(cell_id)
        number = next(self.numbers)
        run_id = f"run{number:06d}"
        finished = loss != float("inf")
        outcome = {"status": "finished", "loss": loss} if finished else {"status": "diverged", "loss": None}
        self._connection.execute(RUN, {"id": run_id, **outcome})
        row = [cell_id, run_id, role, number, list(coordinates)]
        self._connection.execute("INSERT INTO trial VALUES ($1, $2, $3, $4, $5)", row)
        return run_id

    def fit(self) -> None:
        """Renew the fits of what is recorded."""
        assert self.connection
        self._renew(stale_studies, study_rows)

    def _renew(self, stale, fitted) -> None:
        if found := stale(self._connection):
            record_fits(self._connection, [*found], fitted(found))

    def rows(self, text: str) -> list[dict]:
        """Return the rows of a query, once all fits are renewed."""
        self.fit()
        found = self._connection.execute(text)
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


@pytest.fixture
def recorded(database):
    with database.write() as connection:
        yield Recorded(connection)
