"""Coordinate descent beside Optuna's own samplers, on surfaces shaped like loss over lr x weight decay x epochs.

Each surface is a table of losses on the 6 x 8 x 7 grid of arXiv 2509.14786, so its optimum is known exactly. All samplers
begin in the middle and run serially on the same tables. The others see each axis as an ordered integer, which serves them
better than a categorical one. They have no rule for stopping: whether they reach the optimum is read after 80 runs, their
regret at the number of runs after which coordinate descent stopped, certificate in hand. The surfaces have one basin,
which suits a descent. It says nothing of parallel runs, of continuous spaces, or of real training.

    python benchmarks/search.py [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable

import optuna

from dataeff.search.sampler import CoordinateDescentSampler, distributions
from dataeff.specs.grid import Grid, Point

GRID = Grid(
    {
        "lr": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        "weight_decay": (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4),
        "epochs": (1, 2, 4, 8, 16, 32, 64),
    }
)
OPTIMA = 15  # random surfaces of each kind
MOST_RUNS = 80  # a sampler that has not found the optimum by then has not found it
TOLERANCE = 0.005  # nats/token
GP_SECONDS = 15.0  # for each kind of surface; the Gaussian process is slow and gets as many surfaces as fit
KINDS = {  # correlation of weight decay and epochs, run-to-run noise (nats/token), whether high learning rates diverge
    "bowl": (0.0, 0.0, False),
    "realistic": (-0.6, 0.003, True),
    "diagonal valley": (-0.95, 0.0, False),
    "very noisy": (-0.6, 0.03, True),
}
SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "coordinate descent": lambda seed: CoordinateDescentSampler(GRID),
    "TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "GP": lambda seed: optuna.samplers.GPSampler(seed=seed, deterministic_objective=True),
    "QMC": lambda seed: optuna.samplers.QMCSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def surface(kind: str, seed: int) -> dict[Point, float]:
    """Return the loss of every point: quadratic in steps of the (logarithmic) axes, about a random interior optimum."""
    correlation, noise, diverges = KINDS[kind]
    rng = random.Random(f"{kind} {seed}")
    centre = [rng.uniform(0.5, length - 1.5) for length in GRID.shape]
    scale = [rng.uniform(0.02, 0.08) for _ in centre]
    cross = 2 * correlation * math.sqrt(scale[1] * scale[2])
    losses = {}
    for point in itertools.product(*map(range, GRID.shape)):
        d = [i - c for i, c in zip(point, centre, strict=True)]
        loss = 3.4 + sum(s * x * x for s, x in zip(scale, d, strict=True)) + cross * d[1] * d[2] + rng.gauss(0, noise)
        losses[point] = math.inf if diverges and d[0] > 2.2 else loss
    return losses


def optimise(name: str, losses: dict[Point, float], seed: int) -> tuple[list[Point], optuna.Study]:
    """Run one sampler serially on one table; return the points in the order they were run."""
    points: list[Point] = []

    def objective(trial: optuna.Trial) -> float:
        if name == "coordinate descent":
            point = GRID.point({axis: trial.suggest_categorical(axis, values) for axis, values in GRID.axes.items()})
        else:
            point = tuple(trial.suggest_int(axis, 0, len(values) - 1) for axis, values in GRID.axes.items())
        points.append(point)
        return losses[point]

    study = optuna.create_study(sampler=SAMPLERS[name](seed))
    if name != "coordinate descent":
        study.enqueue_trial(dict(zip(GRID.names, GRID.middle, strict=True)))
    study.optimize(objective, n_trials=MOST_RUNS)
    return points, study


def measure(name: str, kind: str, budgets: list[int]) -> dict[str, object]:
    """Run one sampler on all surfaces of a kind. Coordinate descent fills `budgets`, the others read it."""
    to_reach, regrets, seconds, duplicates, runs, certified = [], [], 0.0, 0, 0, 0
    for seed in range(OPTIMA):
        if name == "GP" and seconds > GP_SECONDS:
            break
        losses = surface(kind, seed)
        optimum = min(losses.values())
        began = time.perf_counter()
        points, study = optimise(name, losses, seed)
        seconds += time.perf_counter() - began
        if name == "coordinate descent":
            budgets.append(len(points))
            certified += study.sampler.certificate(study).state == "certified"
        close = (i for i, p in enumerate(points, 1) if losses[p] <= optimum + TOLERANCE)
        to_reach.append(next(close, math.inf))
        regrets.append(min(losses[p] for p in points[: budgets[seed]]) - optimum)
        duplicates += len(points) - len(set(points))
        runs += len(points)
    median = statistics.median(to_reach)
    return {
        "surface": kind,
        "sampler": name,
        "surfaces": len(regrets),
        "median_runs_to_optimum": None if median == math.inf else median,
        "optimum_reached": sum(n < math.inf for n in to_reach),
        "median_runs_of_descent": statistics.median(budgets),
        "median_regret": statistics.median(regrets),
        "worst_regret": max(regrets),
        "duplicate_share": duplicates / runs,
        "certified": certified if name == "coordinate descent" else None,
        "milliseconds_per_run": 1e3 * seconds / runs,
    }


def milliseconds_per_ask() -> dict[str, float]:
    """Return the median time of an ask of coordinate descent after 100 runs, on a bowl and where all of them diverged."""
    found = {}
    for case, losses in {"bowl": surface("bowl", 0), "all diverged": dict.fromkeys(surface("bowl", 0), math.inf)}.items():
        study = optuna.create_study(sampler=CoordinateDescentSampler(GRID))
        space = distributions(GRID)
        for _ in range(100):
            trial = study.ask(fixed_distributions=space)
            study.tell(trial, losses[GRID.point(trial.params)])
        seconds = []
        for _ in range(21):
            began = time.perf_counter()
            trial = study.ask(fixed_distributions=space)
            seconds.append(time.perf_counter() - began)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        found[case] = 1e3 * statistics.median(seconds)
    return found


def table(rows: list[dict[str, object]]) -> str:
    lines = [
        "| surface | sampler | surfaces | runs to optimum | reached | regret | worst regret | duplicates | certified | ms/run |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        runs = f">{MOST_RUNS}" if r["median_runs_to_optimum"] is None else r["median_runs_to_optimum"]
        certified = "" if r["certified"] is None else r["certified"]
        lines.append(
            f"| {r['surface']} | {r['sampler']} | {r['surfaces']} | {runs} | {r['optimum_reached']} | {r['median_regret']:.4f} "
            f"| {r['worst_regret']:.4f} | {r['duplicate_share']:.0%} | {certified} | {r['milliseconds_per_run']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    as_json = parser.parse_args().json
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Clip non-finite values")  # the GP's way with diverged runs
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.logging.disable_default_handler()
    names = list(SAMPLERS)
    skipped = None
    try:
        import torch
    except ImportError as error:
        skipped = f"GP skipped: Optuna's GPSampler needs torch ({error})"
        names.remove("GP")
    else:
        torch.set_num_threads(1)
    rows = []
    for kind in KINDS:
        budgets: list[int] = []
        rows += [measure(name, kind, budgets) for name in names]
    asks = milliseconds_per_ask()
    if as_json:
        print(json.dumps({"rows": rows, "milliseconds_per_ask": asks, "skipped": skipped}, indent=2))
        return
    print(table(rows))
    descents = {r["surface"]: r["median_runs_of_descent"] for r in rows}
    print(f"\nruns to optimum: median until within {TOLERANCE} of it; regret: median, when coordinate descent stopped, after")
    print(f"{', '.join(f'{kind} {n}' for kind, n in descents.items())} of {GRID.size} points (medians)")
    print(f"milliseconds per ask of coordinate descent after 100 runs: {', '.join(f'{k} {v:.1f}' for k, v in asks.items())}")
    if skipped:
        print(skipped)


if __name__ == "__main__":
    main()
