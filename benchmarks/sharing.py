"""What readers cost a study: the time of its write transactions, alone and beside eight readers in a loop.

    python benchmarks/sharing.py

A study writes one transaction every two seconds, from its controller, while its workers train. So the time that readers
add to a transaction, over two seconds, is the most they can take from the controller; the workers never wait. The
peer is the same reading and writing through plain `duckdb.connect`, which fails where dataeff waits.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import duckdb

from dataeff.records.store import Database

WRITES = 60
READERS = 8


def read_with_dataeff(path: Path, stop, counts) -> None:
    while not stop.is_set():
        try:
            with Database(path).read() as connection:
                connection.execute("FROM best_run").fetchall()
            counts[0] += 1
        except Exception:
            counts[1] += 1
            raise


def read_with_duckdb(path: Path, stop, counts) -> None:
    while not stop.is_set():
        try:
            with duckdb.connect(path, read_only=True) as connection:
                connection.execute("FROM best_run").fetchall()
            counts[0] += 1
        except duckdb.Error:
            counts[1] += 1


def measure(path: Path, reader, writer) -> tuple[list[float], int, int, int]:
    """Return (seconds of each write, writes failed, reads done, reads failed) with READERS processes of `reader`."""
    context = multiprocessing.get_context("spawn")
    stop, seconds, failed = context.Event(), [], 0
    counts = [context.Array("q", 2) for _ in range(READERS)]
    readers = [context.Process(target=reader, args=(path, stop, c)) for c in counts] if reader else []
    for process in readers:
        process.start()
    while readers and any(c[0] + c[1] == 0 for c in counts):
        time.sleep(0.05)
    for number in range(WRITES):
        begin = time.perf_counter()
        failed += not writer(path, number)
        seconds.append(time.perf_counter() - begin)
        time.sleep(0.05)
    stop.set()
    for process in readers:
        process.join()
    return seconds, failed, sum(c[0] for c in counts), sum(c[1] for c in counts)


def write_with_dataeff(path: Path, number: int) -> bool:
    with Database(path).write() as connection:
        connection.execute("INSERT OR REPLACE INTO artifact VALUES ($1, 'weights', 'nowhere', 0)", [str(number)])
    return True


def write_with_duckdb(path: Path, number: int) -> bool:
    try:
        with duckdb.connect(path) as connection:
            connection.execute("INSERT OR REPLACE INTO artifact VALUES ($1, 'weights', 'nowhere', 0)", [str(number)])
    except duckdb.Error:
        return False
    return True


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shared.duckdb"
        write_with_dataeff(path, 0)
        print(f"{'':34}{'median ms':>10}{'max ms':>9}{'writes failed':>15}{'reads':>8}{'reads failed':>14}")
        for name, reader, writer in (
            ("dataeff alone", None, write_with_dataeff),
            (f"dataeff beside {READERS} dataeff readers", read_with_dataeff, write_with_dataeff),
            (f"duckdb beside {READERS} duckdb readers", read_with_duckdb, write_with_duckdb),
        ):
            seconds, failed, reads, reads_failed = measure(path, reader, writer)
            median, most = statistics.median(seconds) * 1e3, max(seconds) * 1e3
            print(f"{name:34}{median:10.1f}{most:9.1f}{failed:15d}{reads:8d}{reads_failed:14d}")


if __name__ == "__main__":
    main()
