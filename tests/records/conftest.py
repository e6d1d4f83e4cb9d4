"""An empty database, its store, and cells with losses of one's choosing."""

from __future__ import annotations

import itertools

import pytest
from folders import RUN

from dataeff.fits import fit_rows, stale_evidence
from dataeff.records.ingest import record_cell_ensembles, record_cells, record_fits, record_study, record_trials
from dataeff.records.store import Database
from dataeff.specs.result import Store


@pytest.fixture
def database(tmp_path) -> Database:
    return Database(tmp_path / "results.duckdb")


@pytest.fixture
def store(database) -> Store:
    return Store.beside(database.path)


class Recorded:
    """Writes cells whose points have the losses it is given; `math.inf` is a diverged run."""

    def __init__(self, connection) -> None:
        self.connection = connection
        self.numbers = itertools.count()

    def study(self, name: str = "study", baseline: str = "standard") -> None:
        record_study(self.connection, name, "which?", baseline, "text", {}, "asks")

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
        }
        record_cells(self.connection, [row])
        for coordinates, loss in losses.items():
            self.trial(cell_id, "search", coordinates, loss)
        for coordinates, loss in replicates:
            self.trial(cell_id, "replicate", coordinates, loss)
        return cell_id

    def ensemble(self, cell_id: str, coordinates, losses, members: int = 4, singles=3.5, averaging="logits") -> str:
        """Record an ensemble at a point, its members too, and return its id. `losses`: from a subset's places to its loss.

        `singles` is the loss of every member by itself, or one for each. Of `weights` only the prefixes are evaluated.
        """
        singles = singles if isinstance(singles, list) else [singles] * members
        roles = ["search", *["member"] * (members - 1)]
        ids = [self.trial(cell_id, role, coordinates, loss) for role, loss in zip(roles, singles, strict=True)]
        ensemble_id = f"ensemble {ids[0]}"
        self.connection.execute("INSERT INTO ensemble VALUES ($1, 'c', $2, 4, 'float32', 1, 'd', now())", [ensemble_id, ids])
        subsets = [s for k in range(1, members + 1) for s in itertools.combinations(range(members), k)]
        kept = [s for s in subsets if averaging != "weights" or s == tuple(range(len(s)))]
        rows = [[ensemble_id, i, averaging, list(s), losses(s)] for i, s in enumerate(kept)]
        self.connection.executemany("INSERT INTO ensemble_loss VALUES ($1, $2, $3, $4, $5)", rows)
        row = {"cell_id": cell_id, "ensemble_id": ensemble_id, "number": len(ids), "coordinates": list(coordinates)}
        record_cell_ensembles(self.connection, [row])
        return ensemble_id

    def trial(self, cell_id: str, role: str, coordinates, loss: float) -> str:
        """Record a run and its trial; return the run id."""
        number = next(self.numbers)
        run_id = f"run{number:06d}"
        finished = loss != float("inf")
        outcome = {"status": "finished", "loss": loss} if finished else {"status": "diverged", "loss": None}
        self.connection.execute(RUN, {"id": run_id, **outcome})
        row = {"cell_id": cell_id, "run_id": run_id, "role": role, "number": number, "coordinates": list(coordinates)}
        record_trials(self.connection, [row])
        return run_id

    def fit(self) -> int:
        """Renew the fits of what is recorded; return how many studies were stale."""
        found = stale_evidence(self.connection)
        record_fits(self.connection, [each.study for each in found], [row for each in found for row in fit_rows(each)])
        return len(found)

    def rows(self, text: str) -> list[dict]:
        found = self.connection.execute(text)
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


@pytest.fixture
def recorded(database):
    with database.write() as connection:
        yield Recorded(connection)
