"""The benchmark of coverage goes through the whole pipeline, and its estimates lie where its truth is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_simulated_studies_are_estimated_near_their_true_values():
    command = [sys.executable, "benchmarks/coverage.py", "--json", "--studies", "2", "--rows", "4 members, 3 draws"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    rows = json.loads(subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout)
    assert {row["recipe"] for row in rows} == {"standard", "regularized", "ensemble"}
    assert {row["quantity"] for row in rows} == {"asymptote", "data_law", "data_efficiency", "data_efficiency_trained"}
    for row in rows:
        assert row["no value"] == row["no interval"] == 0
        assert abs(row["bias"]) < {"asymptote": 0.02, "data_law": 1.0}.get(row["quantity"], 0.4)  # of ratios: of the logarithm
