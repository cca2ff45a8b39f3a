"""Prints the table of measurements; with --record, also writes it to benchmarks/RESULTS.md."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.data_parallel import data_parallel
from benchmarks.executor import against_torch, emulated
from benchmarks.importing import importing
from benchmarks.launching import against_spawn, imports, round_trip
from benchmarks.peers import against_peers
from benchmarks.result import Result
from benchmarks.timelines import drawing, emulation, observation

BENCHMARKS: dict[str, Callable[[], Iterator[Result]]] = {
    "launch": against_spawn,
    "peers": against_peers,
    "ranks": round_trip,
    "imports": imports,
    "emulation": emulation,
    "executor": against_torch,
    "emulated-executor": emulated,
    "data parallel": data_parallel,
    "observation": observation,
    "drawing": drawing,
    "import": importing,
}
RESULTS = Path(__file__).with_name("RESULTS.md")
HEADER = "| what | measured | budget | kept |\n|---|---|---|---|"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--record", action="store_true", help=f"add the table to {RESULTS.name}")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    print(HEADER, flush=True)
    lines = []
    for name in options.names or BENCHMARKS:
        for result in BENCHMARKS[name]():
            remark = f" ({result.remark})" if result.remark else ""
            kept = "–" if result.kept is None else "yes" if result.kept else "NO"
            lines.append(f"| {result.what} | {result.value}{remark} | {result.budget} | {kept} |")
            print(lines[-1], flush=True)
    if options.record:
        table = "\n".join([f"## {datetime.date.today()}, {_machine()}", "", HEADER, *lines, ""])
        head, _, older = RESULTS.read_text().partition("\n## ")
        RESULTS.write_text(f"{head}\n{table}" + (f"\n## {older}" if older else ""))


def _machine() -> str:
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} shared cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
