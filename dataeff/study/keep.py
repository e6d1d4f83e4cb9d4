"""Which weights stay: `resources.keep` of a study.

    all      those of every run
    optima   those of the runs at the optima of cells, their members and repeats among them
    none     none

Weights go when the cells that used their run have nothing left to do (with `none`, nor those that build on them) and no job in
the queue reads them. What is needed again is trained again by itself, so removing too much costs time and no result.
"""

import shutil
from collections.abc import Iterable

from dataeff.study.queue import Queue
from dataeff.study.resolve import CellState, Resolution


def prune_weights(keep: str, resolution: Resolution, queue: Queue, changed: Iterable[CellState]) -> None:
    """Remove weights that the changed cells, or the cells they build on, needed until now."""
    if keep == "all":
        return
    states = {state.cell.id: state for state in changed}
    for state in list(states.values()):
        states |= {parent: resolution.states[parent] for parent in state.cell.builds_on}
    run_ids = {use.job_id for state in states.values() for use in state.uses if not use.is_ensemble}
    for run_id in run_ids:
        if not _is_needed(run_id, keep, resolution, queue):
            folder = queue.store.run(run_id)
            folder.weights.unlink(missing_ok=True)
            shutil.rmtree(folder.path / "snapshots", ignore_errors=True)


def _is_needed(run_id: str, keep: str, resolution: Resolution, queue: Queue) -> bool:
    if run_id in queue or queue.needs(run_id):
        return True
    for state in resolution.reading(run_id):
        points = [use.point for use in state.uses if use.job_id == run_id]
        at_optimum = state.best in points and (keep == "optima" or not resolution.is_finished(state.cell.id))
        if points and (at_optimum or not state.ended or state.wanted):
            return True
    return False
