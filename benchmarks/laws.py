"""Fits of laws: is the optimum the optimum, how long do resamples take, and do 90% intervals cover 90%?

1. Optimum: random tables of losses, each fitted here and by many-start L-BFGS-B and Nelder-Mead over all parameters at
   once. `worst gap` is the most by which the rival was better, relative to the objective.
2. Time: 10,000 refits of a five-point power law in one call, beside a loop of scipy's curve_fit started at the true law;
   and one fit of the additive law to 24 runs under Huber's loss of log L, beside the package `chinchilla` (its own
   BFGS from a grid of starts in worker processes) where a Python that has it is given. Seconds of wall time.
3. Coverage: how often intervals of the limit hold the true limit, over simulated laws with independent normal noise. The
   last rows show what no interval from one curve can cover: losses of 1, 2, ... K of the same members share their noise.

    python benchmarks/laws.py [--json] [--tables 20] [--runs 2000] [--chinchilla /path/to/python]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import tempfile
import time
import warnings

import numpy as np
from scipy import stats
from scipy.optimize import curve_fit, minimize

from dataeff.laws.fit import DELTA, fit, refit
from dataeff.laws.forms import Additive, Exponential, PowerLaw, PowerLawWithoutFloor, Reciprocal
from dataeff.laws.intervals import interval, profile

SIZES, BUDGETS, MEMBERS = np.geomspace(0.15, 1.4, 8), 209.7 * 2.0 ** np.arange(8), np.arange(1.0, 9)
TRUTHS = {  # the laws of arXiv 2509.14786 and one of slower descent: over N, D, K
    "N: .05/N^1.02 + 3.43": (PowerLaw(0.05, 1.02, 3.43), lambda n: np.geomspace(0.15, 1.4, n)),
    "N: .3/N^.5 + 3": (PowerLaw(0.3, 0.5, 3.0), lambda n: np.geomspace(0.15, 1.4, n)),
    "D: 6/D^.235 + 1.92": (PowerLaw(6.0, 0.235, 1.92), lambda n: BUDGETS[:n]),
    "K: .2/K^.9 + 3.2": (PowerLaw(0.2, 0.9, 3.2), lambda n: MEMBERS[:n]),
}
CHINCHILLA = """
import json, sys, time, tempfile, numpy as np
from chinchilla import Chinchilla
from chinchilla._metrics import log_huber
n, d, y, delta, starts = json.load(sys.stdin)
axes = dict(e=np.log(np.linspace(1.5, 2.2, starts)), a=np.linspace(3, 9, starts), b=np.linspace(3, 9, starts),
            alpha=np.linspace(.2, .6, starts), beta=np.linspace(.2, .6, starts))
model = Chinchilla(tempfile.mkdtemp(), param_grid=axes, loss_fn=lambda t, p: log_huber(t, p, delta), log_level=50)
model.database.df = __import__("pandas").DataFrame(dict(C=6 * np.array(n) * np.array(d), N=n, D=d, loss=y))
model.visualizer.optim = lambda *a, **k: None
began = time.perf_counter(); model.fit()
print(json.dumps([time.perf_counter() - began, *map(float, (model.A, model.alpha, model.B, model.beta, model.E))]))
"""


def rival(form, x, y, loss: str, rng, starts: int = 20) -> float:
    """The least objective from random starts, over all parameters at once."""
    p = len(form.linear)
    box = [(0, None)] * p + [tuple(np.log(b)) for b in form.bounds.values()]

    def objective(v):
        columns = [np.broadcast_to(c, y.shape) for c in form.columns(*np.atleast_2d(x), *np.exp(v[p:]))]
        law = np.maximum(sum(c * column / np.abs(column).max() for c, column in zip(v, columns, strict=False)), 1e-300)
        return 1e6 * (huber(law, y) if loss == "huber" else np.sum((law - y) ** 2))

    def polished(start):
        for _ in range(3):
            start = minimize(objective, start, method="L-BFGS-B", bounds=box, options={"ftol": 1e-16, "gtol": 1e-12}).x
        return minimize(objective, start, method="Nelder-Mead", bounds=box, options={"xatol": 1e-12, "fatol": 1e-18}).fun

    return min(polished([*rng.uniform(0, y.max(), p), *(rng.uniform(*b) for b in box[p:])]) for _ in range(starts)) / 1e6


def huber(law, y) -> float:
    r = np.abs(np.log(law) - np.log(y))
    return float(np.sum(np.where(r <= DELTA, r * r / 2, DELTA * (r - DELTA / 2))))


def optima(tables: int) -> list[dict]:
    rng, rows = np.random.default_rng(0), []
    for form in (PowerLaw, PowerLawWithoutFloor, Reciprocal, Exponential, Additive):
        for loss in ("least_squares", "huber"):
            gaps, certified, rival_worse = [], 0, 0
            for _ in range(max(1, tables // (10 if form is Additive else 1))):
                n = rng.integers(5, 12) if form is Additive else rng.integers(3, 9)
                x = np.exp(rng.uniform(0, 5, (2, n))) if form is Additive else np.sort(rng.uniform(0.3, 8, n))
                y = 3 + 0.3 * np.atleast_2d(x)[0] ** -rng.uniform(0.1, 1.5) + rng.normal(0, rng.choice([0.001, 0.01, 0.3]), n)
                ours = fit(form, x, y, loss=loss)
                other = rival(form, x, y, loss, rng)
                gaps.append((ours.objective - other) / max(ours.objective, 1e-18))
                certified += ours.certified
                rival_worse += ours.objective < other * (1 - 1e-9) - 1e-18
            rows.append({"form": form.__name__, "loss": loss, "tables": len(gaps), "worst_gap": max(0.0, max(gaps)),
                         "certified": certified, "rival_worse": rival_worse})  # fmt: skip
    return rows


def seconds() -> dict[str, float]:
    x, law, box = np.geomspace(0.15, 1.4, 5), PowerLaw(0.05, 1.02, 3.43), ([0, 0.02, 0], [99, 3, 99])
    ys = law(x) + np.random.default_rng(0).normal(0, 0.003, (10_000, 5))
    refit(PowerLaw, x, ys[:100])
    began = time.perf_counter()
    refits = refit(PowerLaw, x, ys)
    ours = time.perf_counter() - began
    count = 300
    began, loop = time.perf_counter(), []
    for y in ys[:count]:
        try:
            p, _ = curve_fit(lambda x, a, alpha, e: a * x**-alpha + e, x, y, (0.05, 1.02, 3.43), bounds=box)
            loop.append(float(np.sum((PowerLaw(*p)(x) - y) ** 2)))
        except RuntimeError:
            loop.append(math.inf)
    theirs = (time.perf_counter() - began) / count * len(ys)
    worse = int(np.sum(np.array(loop) > refits.objective[:count] * (1 + 1e-6) + 1e-15))
    better = int(np.sum(np.array(loop) < refits.objective[:count] * (1 - 1e-6) - 1e-15))
    return {"refits": len(ys), "refit_s": ours, "curve_fit_s": theirs, "ratio": theirs / ours,
            "curve_fit_worse_share": worse / count, "curve_fit_better_share": better / count}  # fmt: skip


def beside_chinchilla(python: str) -> dict[str, float | str]:
    law, rng = Additive(482.0, 0.348, 2085.0, 0.366, 1.82), np.random.default_rng(0)
    n, d = (axis.ravel() for axis in np.meshgrid([1e8, 3e8, 1e9, 3e9], [1e9, 2e9, 4e9, 16e9, 32e9, 64e9]))
    y = law(n, d) * np.exp(rng.normal(0, 0.003, n.size))
    began = time.perf_counter()
    ours = fit(Additive, [n, d], y, loss="huber")
    row = {"ours_s": time.perf_counter() - began, "ours_objective": ours.objective}
    for starts in (2, 4):
        given = json.dumps([n.tolist(), d.tolist(), y.tolist(), DELTA, starts])
        with tempfile.TemporaryDirectory() as folder:
            run = subprocess.run([python, "-c", CHINCHILLA], input=given, capture_output=True, text=True, cwd=folder)
        if run.returncode:
            return row | {"error": run.stderr.strip().splitlines()[-1]}
        took, *values = json.loads(run.stdout.strip().splitlines()[-1])
        name = f"chinchilla_{starts**5}_starts"
        row |= {f"{name}_s": took, f"{name}_objective": huber(Additive(*values)(n, d), y)}
    return row


def coverage(runs: int) -> list[dict]:
    """Coverage of the limit. Profiles are counted at the truth, many runs in one call; the tests hold `interval` to that."""
    rng, rows = np.random.default_rng(0), []
    for name, (law, x_of) in TRUTHS.items():
        for n in (3, 4, 5, 6, 8):
            for sd in (0.001, 0.003, 0.01):
                x = x_of(n)
                ys = law(x) + rng.normal(0, sd, (runs, n))
                best = refit(PowerLaw, x, ys).objective
                gain, spare = profile(PowerLaw, x, ys, np.full(runs, law.limit)) - best, n - 3
                estimated = sd**2 * rng.chisquare(2 * n, runs) / (2 * n)  # by three replicates of each point
                row = {"law": name, "points": n, "sd": sd, "known sd": gain <= sd**2 * stats.chi2.ppf(0.9, 1),
                       "replicates": gain <= estimated * stats.f.ppf(0.9, 1, 2 * n)}  # fmt: skip
                if spare:
                    row["residuals"] = gain <= best / spare * stats.f.ppf(0.9, 1, spare)
                rows.append({key: float(np.mean(v)) if np.ndim(v) else v for key, v in row.items()})
    for n in (4, 8):  # members of different quality: the loss of the first K of them, and of the mean of all subsets of K
        law, x, quality = PowerLaw(0.2, 0.9, 3.2), MEMBERS[:n], rng.normal(0, 0.01, (runs, n))
        curves = {"first K of the members": np.cumsum(quality, axis=1) / x, "all subsets": quality.mean(axis=1)[:, None]}
        for name, shared in curves.items():
            ys = law(x) + shared + rng.normal(0, 1e-4, (runs, n))
            best = refit(PowerLaw, x, ys).objective
            gain = profile(PowerLaw, x, ys, np.full(runs, law.limit)) - best
            covers = gain <= best / (n - 3) * stats.f.ppf(0.9, 1, n - 3)
            rows.append({"law": f"K: {name}", "points": n, "sd": 0.01, "residuals": float(covers.mean())})
    for points in (20, 40):  # losses with outliers, by Huber's loss: resamples are refitted one by one, so 100 laws
        law, x = PowerLaw(0.5, 0.6, 3.0), np.geomspace(0.1, 30, points)
        ends = [interval(fit(PowerLaw, x, law(x) * np.exp(0.003 * rng.standard_t(3, points)), loss="huber")) for _ in range(100)]
        covers = np.mean([each.low <= law.limit <= each.high for each in ends])
        rows.append({"law": "Huber, Student's t of 3", "points": points, "sd": 0.003, "bootstrap": float(covers)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--tables", type=int, default=20, help="tables of losses for each form and loss (Additive: a tenth)")
    parser.add_argument("--runs", type=int, default=2000, help="simulated curves for each row of the coverage table")
    parser.add_argument("--chinchilla", metavar="PYTHON", help="a Python in which the package chinchilla is installed")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of the rivals
    results = {"seconds": seconds(), "coverage": coverage(args.runs)}
    results["chinchilla"] = beside_chinchilla(args.chinchilla) if args.chinchilla else "skipped: no --chinchilla PYTHON"
    results["optima"] = optima(args.tables)
    if args.json:
        print(json.dumps(results, indent=2))
        return
    print("\n".join(f"{key}: {value}" for key, value in results["seconds"].items()), f"\nchinchilla: {results['chinchilla']}\n")
    for rows, columns in (
        (results["optima"], ["form", "loss", "tables", "worst_gap", "certified", "rival_worse"]),
        (results["coverage"], ["law", "points", "sd", "known sd", "replicates", "residuals", "bootstrap"]),
    ):
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for row in rows:
            shown = [f"{row.get(c, ''):.3g}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns]
            print(f"| {' | '.join(shown)} |")
        print()


if __name__ == "__main__":
    main()
