"""Every architecture of the zoo through trace, groups, removal, proof, training, saving and export.

    python -m benchmarks.coverage [--only 'bert*'] [--part 1/8] [--peer] [--no-export] [--resume] [--jobs 1]

Each row runs in a process of its own, with a limit on time and memory; a row that was stopped is a row that
failed. Prints a line per row as it comes, writes ``coverage.json`` with everything and ``coverage.md`` with
the tables after every row. ``--peer`` adds the same rows with Torch-Pruning, which is in the extra
``bench``;
``--resume`` keeps the rows that ``coverage.json`` has from this commit or from ``--also``, and the peer's
from any, and adds what is missing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from benchmarks.coverage_tables import Record, brief, pages
from tests.zoo.architectures.row import Row
from tests.zoo.architectures.table import ARCHITECTURES, chosen

from prunekit.measure import environment

SECONDS = 120
"""Of CPU time, so that a busy machine fails no row; a process may take four times that on the clock."""

MEMORY_BYTES = 12 << 30
"""Of address space, which torch reserves far more of than it uses."""

ROOT = Path(__file__).parents[1]


def run_row(row: Row, *options: str) -> Record:
    """The record of one row, from a process of its own."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.coverage_row", row.name, *options]
    stopped: Record = {"name": row.name, "family": row.family, "pruned": False, "correct": False}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=4 * SECONDS,
            check=False,
            preexec_fn=_limit,
        )
    except subprocess.TimeoutExpired:
        return stopped | {"stage": "time", "error": f"not done after {4 * SECONDS} s", "seconds": 4 * SECONDS}
    if done.returncode == -signal.SIGXCPU:
        stopped |= {"stage": "time", "error": f"not done after {SECONDS} s of CPU time"}
        return stopped | {"seconds": SECONDS}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        error = " ".join(done.stderr.strip().splitlines()[-3:])[-600:]
        stopped |= {"stage": "process", "error": f"exit code {done.returncode}: {error}"}
        return stopped | {"seconds": round(time.perf_counter() - begin, 2)}
    return json.loads(lines[-1])


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def measure(rows: list[Row], known: dict[str, Record], asked: argparse.Namespace) -> Iterator[Record]:
    """A record per row as it is done, with the peer's under ``peer`` where it was asked for."""

    def one(row: Row) -> Record:
        old = known.get(row.name, {})
        record = old
        if old.get("commit") not in {asked.commit, *asked.also}:
            record = run_row(row, *(["--no-export"] if asked.no_export else [])) | {"commit": asked.commit}
            record |= {key: old[key] for key in ("peer",) if key in old}
        if asked.peer and "peer" not in record:
            record["peer"] = run_row(row, "--peer")
        return record

    with ThreadPoolExecutor(asked.jobs) as pool:
        for done in as_completed([pool.submit(one, row) for row in rows]):
            yield done.result()


def write(records: dict[str, Record], asked: argparse.Namespace) -> str:
    """Both files, complete or not at all; the Markdown."""
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(asked).items()}
    whole = {
        "settings": settings | {"seconds": SECONDS, "memory_bytes": MEMORY_BYTES},
        "environment": environment(1),
        "versions": versions(),
        "rows": [records[row.name] for row in ARCHITECTURES if row.name in records],
    }
    text = pages(whole)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, content in (("coverage.json", json.dumps(whole, indent=1) + "\n"), ("coverage.md", text)):
        unfinished = asked.out / f".{name}"
        unfinished.write_text(content)
        unfinished.replace(asked.out / name)
    return text


def versions() -> dict[str, str]:
    """Of what this benchmark needs beside what every measurement records."""
    found = {}
    for package in ("transformers", "torch-pruning", "safetensors"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """What was measured: the commit, and whether the sources differ from it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return f"{head}-dirty" if _git("status", "--porcelain", "--", "src", "tests", "benchmarks") else head


def _git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _part(text: str) -> tuple[int, int]:
    part, parts = (int(number) for number in text.split("/"))
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"{text} is not a part: give K/N with 1 <= K <= N")
    return part - 1, parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="*", help="shell-style pattern of rows or families")
    parser.add_argument("--part", type=_part, default=(0, 1), help="K/N: every N-th row, from the K-th on")
    parser.add_argument("--peer", action="store_true", help="Torch-Pruning on the same rows")
    parser.add_argument(
        "--no-export", action="store_true", help="leave ONNX out, which takes half of the time"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows of this very commit, and the peer's of any"
    )
    parser.add_argument("--also", nargs="*", default=(), help="other commits whose rows are kept")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time; seconds are honest with one")
    parser.add_argument("--json", action="store_true", help="print whole records")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    asked = parser.parse_args()
    rows = chosen(asked.only, *asked.part)
    if not rows:
        parser.error(f"no row is called {asked.only!r}")
    asked.commit = commit()
    path = asked.out / "coverage.json"
    old = json.loads(path.read_text())["rows"] if asked.resume and path.exists() else []
    records = {record["name"]: record for record in old}
    for record in measure(rows, dict(records), asked):
        records[record["name"]] = record
        print(json.dumps(record) if asked.json else brief(record), flush=True)
        write(records, asked)
    print(write(records, asked))


if __name__ == "__main__":
    main()
