"""Do 90% intervals cover 90%? Simulated studies, searched, repeated, recorded and fitted by the code of any study.

The truth of each study is drawn anew, around the laws of arXiv 2509.14786. The baseline is best at one size (or equal at all).
`regularized` falls as a / N^alpha + A / D^beta + E. An ensemble of K gains c (1 - K^-g) on that. Beside the optimum of a cell
lies a bowl of random curvature: its neighbours are 0.002 to 0.05 nats worse, and the best point of the grid is the law's. What a
trained run shows has the noise of its seed, and that of the draw of the data, common to all runs at one D in one draw.

True values: of a limit, the law itself; of an ensemble, which tunes nothing, its limit at the point it follows; of what was
trained, the expected loss of the chosen point and size; of data efficiency, by the true law of the baseline. `bias/sd` is in
standard deviations of the estimates' errors (of ratios: of their logarithm); coverage is over estimates with an interval.

    python benchmarks/coverage.py [--json] [--studies 20] [--rows NAME ...]
"""

from __future__ import annotations

import argparse
import json
import math
from datetime import UTC, datetime
from itertools import combinations

import duckdb
import numpy as np

from dataeff.facts.job import Fact, Job
from dataeff.laws.chain import tokens_by_law
from dataeff.laws.fit import fit
from dataeff.laws.forms import PowerLaw
from dataeff.records.ingest import record_fits, record_jobs, record_study
from dataeff.records.store import views
from dataeff.records.tables import statements
from dataeff.specs.study import StudySpec
from dataeff.study.demand import Demand
from dataeff.study.fits import ensemble_rows, stale_ensembles, stale_studies, study_rows
from dataeff.study.index import StudyFact, write_cells
from dataeff.study.resolve import Resolution, resolve
from dataeff.study.results import Results
from dataeff.training.result import Curve, RunResult
from dataeff.work.ensemble import EnsembleResult, SubsetLoss
from dataeff.work.train import Train

USUAL = {"seeds": 2, "draws": 1, "sd": 0.003, "draw_sd": 0.0, "flat": False, "equal": False, "misfit": 0.0, "members": 1}
ROWS = {
    **{f"{seeds} seeds, sd {sd}": {"seeds": seeds, "sd": sd} for seeds in (2, 3, 6) for sd in (0.003, 0.01)},
    "one draw of 0.004": {"draw_sd": 0.004},
    **{f"{draws} draws of {sd}": {"draws": draws, "draw_sd": sd} for draws in (3, 4) for sd in (0.004, 0.02)},
    "flat grid": {"flat": True, "seeds": 3},
    "flat grid, 3 draws": {"flat": True, "draws": 3, "draw_sd": 0.004},
    "equal sizes": {"equal": True, "seeds": 3},
    "equal sizes, 3 draws": {"equal": True, "draws": 3, "draw_sd": 0.004},
    "misfit 0.0004": {"misfit": 0.0004, "seeds": 3, "sd": 0.001},
    "4 members": {"members": 4},
    "4 members, 3 draws": {"members": 4, "draws": 3, "draw_sd": 0.004},
    **{f"{draws} draws, 1 seed": {"draws": draws, "seeds": 1, "sd": 0.005, "draw_sd": 0.01} for draws in (3, 4)},
}
UNTUNED = 0.01  # weight decay of the baseline, off the grid of the other recipes: they share no run
MEMBERS_SD = 1e-4  # of the loss of one subset of members, beside that of their seeds
BUDGETS = [209_715_200 * 2**k for k in range(4)]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TABLES = ("run", "ensemble", "ensemble_loss", "trial", "cell_ensemble", "cell", "fit", "study")
DURATION = {"wall_seconds": 1.0, "device": "none"}


def declare(row: dict) -> Demand:
    grid = {"lr": [2.0**-k for k in range(11, 6, -1)], "weight_decay": [0.1, 0.2, 0.4, 0.8, 1.6], "epochs": [2.0, 4.0, 8.0, 16.0]}
    recipes = {"standard": {"fixed": {"weight_decay": UNTUNED}, "limit": "best"}, "regularized": {"limit": "N"}}
    if row["members"] > 1:
        recipes["ensemble"] = {"base": "regularized", "tune": [], "members": row["members"], "limit": "K"}
    if row["flat"]:
        grid["epochs"] = [4.0]
    given = {
        **{"name": "simulated", "question": "do intervals cover?", "seed_tokens": BUDGETS, "draws": row["draws"]},
        "seeds": list(range(row["seeds"])),
        **{"sizes": ["150m", "300m", "600m", "1.4b"], "tokenizer": {"kind": "bpe", "vocabulary": 300}, "grid": grid},
        "training": {"context_length": 4096, "batch_size": 64, "validation_sequences": 8, "precision": "bfloat16"},
        "recipes": recipes,
    }
    return Demand(StudySpec.model_validate(given), "corpus", 300, 0)


class World:
    """The true losses of one simulated study, and what runs of it show."""

    def __init__(self, row: dict, demand: Demand, rng: np.random.Generator) -> None:
        self.row, self.demand, self.rng = row, demand, rng
        a, beta, e = rng.uniform(5.5, 6.5), rng.uniform(0.21, 0.26), rng.uniform(1.8, 2.05)
        self.tops = PowerLaw(a, beta, e)
        self.base = PowerLaw(a * rng.uniform(1.05, 1.2), beta, e + rng.uniform(0.1, 0.2))
        self.over_n = PowerLaw(rng.uniform(0.03, 0.1), rng.uniform(0.7, 1.3), 0.0)
        self.gain, self.power = rng.uniform(0.15, 0.25), rng.uniform(0.8, 1.1)
        self.steepness = 0.0 if row["equal"] else rng.uniform(0.02, 0.06)
        self.best_size, self.phase = rng.integers(0, 4, len(BUDGETS)), rng.uniform(0, 2 * math.pi, 2)
        bent, (low, high) = not row["flat"], np.log([0.002, 0.05])
        self.curvature = {name: np.exp(rng.uniform(low, high, 3)) * bent for name in ("tuned", "untuned")}
        self.surfaces: dict[tuple, tuple] = {}
        self.draws: dict[tuple[int, int], float] = {}

    def bowl(self, run: Train) -> float:
        """Return what a run's hyperparameters lose on the best of their grid."""
        grid = self.demand.study.grid
        key = run.weight_decay == UNTUNED, run.seed_tokens, run.model.hidden
        if key not in self.surfaces:
            axes = {axis: [UNTUNED] if key[0] and axis == "weight_decay" else values for axis, values in grid.items()}
            middle = [self.rng.uniform(0.7, len(values) - 1.7) if len(values) > 1 else 0.0 for values in axes.values()]
            losses = np.zeros(())
            for values, centre, c in zip(axes.values(), middle, self.curvature["untuned" if key[0] else "tuned"], strict=True):
                losses = np.add.outer(losses, c * (np.arange(len(values)) - centre) ** 2)
            self.surfaces[key] = axes, losses - losses.min()
        axes, losses = self.surfaces[key]
        return float(losses[tuple(values.index(getattr(run, axis)) for axis, values in axes.items())])

    def limit(self, recipe: str, tokens: int) -> float:
        """Return the true limit of a recipe of single models at D."""
        law = self.base if recipe == "standard" else self.tops
        return float(law(tokens / 1e6)) + self.wave(math.log2(tokens / BUDGETS[0]), 0)

    def wave(self, place: float, which: int) -> float:
        """Return by how much a law is not a power law: a wave over the logarithm of D or N."""
        return math.sqrt(2) * self.row["misfit"] * math.cos(2 * place + self.phase[which])

    def expected(self, run: Train) -> float:
        """Return the mean loss of a run over seeds and draws of the data."""
        sizes = [size.hidden for size in self.demand.study.sizes]
        size, budget = sizes.index(run.model.hidden), BUDGETS.index(run.seed_tokens)
        if run.weight_decay == UNTUNED:
            beside = self.steepness * (size - self.best_size[budget]) ** 2
            return self.limit("standard", run.seed_tokens) + self.bowl(run) + beside
        billions = run.model.parameters_total / 1e9
        over_n = float(self.over_n(billions)) + self.wave(math.log2(billions), 1)
        return self.limit("regularized", run.seed_tokens) + over_n + self.bowl(run)

    def loss(self, run: Train) -> float:
        key = run.seed_tokens, run.draw
        if key not in self.draws:
            self.draws[key] = self.rng.normal(0, self.row["draw_sd"])
        return self.expected(run) + self.draws[key] + self.rng.normal(0, self.row["sd"])

    def result(self, job: Job, losses: dict[str, float]) -> Fact:
        if isinstance(job, Train):
            return _run_result(job, self.loss(job))
        single = np.array([losses[member.job.id] for member in job.members])
        subsets = [s for k in range(1, len(single) + 1) for s in combinations(range(len(single)), k)]
        curve = [float(np.mean(single[list(s)])) - self.gain * (1 - len(s) ** -self.power) for s in subsets]
        noisy = np.array(curve) + self.rng.normal(0, MEMBERS_SD, len(curve)) * np.array([len(s) > 1 for s in subsets])
        shown = [SubsetLoss(averaging="logits", subset=list(s), val_loss=y) for s, y in zip(subsets, noisy.tolist(), strict=True)]
        return EnsembleResult(ensemble_id=job.id, losses=shown, **DURATION)

    def truths(self, resolution: Resolution, chosen: dict[tuple[str, int], str]) -> dict[tuple, float]:
        """Return the true values by (recipe, D, quantity). `chosen`: the cell of the chosen size by (recipe, D)."""
        found: dict[tuple, float] = {}
        for (recipe, tokens), cell_id in chosen.items():
            states = [s for s in resolution.states.values() if (s.cell.recipe, s.cell.seed_tokens) == (recipe, tokens)]
            points = {s.cell.id: self.expected(self.demand.members(s.cell, s.best, 1)[0]) for s in states}
            limit, trained = self.limit(recipe, tokens), points[cell_id]
            if recipe == "ensemble":
                limit, trained = min(points.values()) - self.gain, trained - self.gain * (1 - self.row["members"] ** -self.power)
            found[recipe, tokens, "asymptote"] = limit
            for name, loss in (("data_efficiency", limit), ("data_efficiency_trained", trained)):
                found[recipe, tokens, name] = float(tokens_by_law(**vars(self.base), losses=np.float64(loss))) * 1e6 / tokens
        found["standard", None, "data_law"], found["regularized", None, "data_law"] = self.base.e, self.tops.e
        if self.row["members"] > 1:
            limits = [found["ensemble", tokens, "asymptote"] for tokens in BUDGETS]
            found["ensemble", None, "data_law"] = fit(PowerLaw, np.array(BUDGETS) / 1e6, limits).law.e
        return found


def _run_result(job: Train, loss: float) -> RunResult:
    counts = {"steps": 1, "tokens_seen": 1, "training_flops": 1, "tokens_per_second": 1.0}
    unknown = dict.fromkeys(("reason", "val_loss_standard_error", "train_loss", "model_flops_utilisation", "peak_memory_bytes"))
    return RunResult.model_construct(
        **{"run_id": job.id, "status": "finished", "val_loss": loss, "evaluations": [], "weights_bytes": None},
        **{"curve": Curve(step=[], tokens=[], train_loss=[], gradient_norm=[], lr=[]), "host": "none", "torch_version": "none"},
        **{name: getattr(job.model, name) for name in ("parameters_total", "parameters_non_embedding")},
        **{"started_at": NOW, "ended_at": NOW},
        **{**counts, **unknown, **DURATION},
    )


def run_study(world: World) -> tuple[Resolution, list[tuple[Job, Fact]]]:
    """Search, repeat and ensemble until nothing is wanted."""
    results, done = Results(), []
    resolution = resolve(world.demand, results)
    while wanted := {job.id: job for state in resolution.states.values() for job in state.wanted}:
        surfaces = set()
        for job in wanted.values():
            result = world.result(job, results.losses)
            surfaces.add(results.add(job, result))
            done.append((job, result))
        resolution.update(wanted, surfaces - {None})
    return resolution, done


def estimate(connection: duckdb.DuckDBPyConnection, world: World) -> list[dict]:
    """Return the estimates of one study, each with its true value."""
    resolution, done = run_study(world)
    for table in TABLES:
        connection.execute(f"DELETE FROM {table}")
    spec = world.demand.study
    fact = StudyFact(spec=spec, text="", corpus="corpus", vocabulary=300, separator=0, started_at=NOW, updated_at=NOW)
    record_study(connection, fact.row())
    record_jobs(connection, done)
    write_cells(connection, world.demand, resolution.states.values())
    for stale, fitted in ((stale_ensembles, ensemble_rows), (stale_studies, study_rows)):
        if found := stale(connection):
            rows = fitted(found)
            record_fits(connection, [*found], rows)
    chosen = connection.execute("SELECT recipe, seed_tokens, best_cell FROM asymptote").fetchall()
    truths = world.truths(resolution, {(recipe, tokens): cell_id for recipe, tokens, cell_id in chosen})
    scored = ((row, truths.get((row["recipe"], row["seed_tokens"], row["quantity"]))) for row in rows)
    columns = ("recipe", "seed_tokens", "quantity", "value", "low", "high")
    return [{name: row[name] for name in columns} | {"truth": truth} for row, truth in scored if truth is not None]


def score(name: str, estimates: list[dict]) -> list[dict]:
    """Return bias, coverage and width by quantity and recipe, over all studies and budgets."""
    rows = []
    for quantity, recipe in sorted({(each["quantity"], each["recipe"]) for each in estimates}):
        every = [each for each in estimates if (each["quantity"], each["recipe"]) == (quantity, recipe)]
        valued = [each for each in every if each["value"] is not None]
        scale = np.log if quantity.startswith("data_efficiency") else np.asarray
        errors = scale([each["value"] for each in valued]) - scale([each["truth"] for each in valued])
        bounded = [each for each in valued if each["low"] is not None or each["high"] is not None]
        truth, low, high = (np.array([each[end] for each in bounded], dtype=float) for end in ("truth", "low", "high"))
        low, high = np.nan_to_num(low), np.where(np.isnan(high), math.inf, high)
        bias, sd = (float(of(errors)) if valued else math.nan for of in (np.mean, np.std))
        inside, width = (low <= truth) & (truth <= high), high - low
        covered, median = (float(of(each)) if bounded else math.nan for of, each in ((np.mean, inside), (np.median, width)))
        row = {"row": name, "quantity": quantity, "recipe": recipe, "n": len(every), "bias": bias, "sd": sd}
        row |= {"bias/sd": bias / (sd or math.nan), "coverage": covered, "no value": 1 - len(valued) / len(every)}
        rows.append(row | {"no interval": 1 - len(bounded) / len(every), "median width": median})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--studies", type=int, default=20, help="simulated studies for each row")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help="; ".join(ROWS))
    args = parser.parse_args()
    connection, rows = duckdb.connect(config={"threads": 1}), []
    connection.execute(f"{statements()};\n{views()}")
    connection.execute("INSERT INTO schema VALUES ('simulated', now())")
    for number, name in enumerate(args.rows):
        row = USUAL | ROWS[name]
        demand, estimates = declare(row), []
        for study in range(args.studies):
            estimates += estimate(connection, World(row, demand, np.random.default_rng([list(ROWS).index(name), study])))
        scored = score(name, estimates)
        rows += scored
        if not args.json:
            if not number:
                print(f"| {' | '.join(scored[0])} |\n|{'---|' * len(scored[0])}")
            for each in scored:
                print(f"| {' | '.join(f'{v:.3g}' if isinstance(v, float) else str(v) for v in each.values())} |", flush=True)
    if args.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
