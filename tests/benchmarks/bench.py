"""How fast training and decoding are, beside this machine's limits and beside peers, in one run.

    make bench             the table; peers where `make bench-peers` has made their environment
    make bench JOBS="b e"  some of the jobs

All sides of a job are started first, and then take turns of a few seconds each, so that what else the machine does hits all alike.
A figure is the median of the turns. The fraction is that of the machine's product of matrices in bf16, measured in the same run:
6 x weights x tokens a second in training, 2 x in decoding, where a source is encoded once for all beams, over the peak.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jobs import JOBS, PairJob
from kept import keep

from rnnlm.memory import ENVIRONMENT

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = ROOT / ".venv-peers/bin/python"
OURS = "ours.py"
PRECISIONS = {"train": ("fp32", "bf16"), "decode": ("fp32", "bf16", "int8")}


def peaks(threads: int) -> dict[str, float]:
    """Measured limits of so many cores: products of square matrices in 1e9 operations a second, copying in 1e9 bytes a second."""
    torch.set_num_threads(threads)
    size = 2048
    found = {}
    for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = torch.randn(2, size, size).to(kind)
        found[name] = 2 * size**3 / _fastest(lambda left=left, right=right: left @ right) / 1e9
    left, right = torch.randint(-9, 9, (2, size, size), dtype=torch.int8)
    found["int8"] = 2 * size**3 / _fastest(lambda: torch._int_mm(left, right)) / 1e9
    block = torch.zeros(1 << 26)
    target = torch.empty_like(block)
    found["copy"] = 2 * block.nbytes / _fastest(lambda: target.copy_(block)) / 1e9
    return {name: round(value, 1) for name, value in found.items()}


def _fastest(work: Any, turns: int = 7) -> float:
    seconds = []
    for _ in range(turns):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


@dataclass
class Side:
    """Processes that do one job side by side when they are told to."""

    name: str
    processes: "list[subprocess.Popen[str]]"
    rates: list[float]

    @classmethod
    def start(cls, command: list[str], threads: int, processes: int = 1) -> "Side | str":
        """The processes once they are ready; else the last line that one of them said."""
        name, started = "", []
        for _ in range(processes):
            process = _start([*command, "--threads", str(threads)], threads)
            started.append(process)
            assert process.stdout is not None
            assert process.stderr is not None
            line = next((line for line in process.stdout if line.startswith("{")), None)
            if line is None:
                return (process.stderr.read().strip().splitlines() or ["ended"])[-1]
            name = json.loads(line)["name"] + (f", {processes} processes" if processes > 1 else "")
        return cls(name, started, [])

    def turn(self, seconds: float) -> None:
        """Work for so long."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        self.rates.append(
            sum(json.loads(process.stdout.readline())["rate"] for process in self.processes if process.stdout)
        )

    def end(self) -> None:
        """Let them end."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def _start(command: list[str], threads: int) -> "subprocess.Popen[str]":
    """A process; one of ours has the environment of a training's workers."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if OURS in command:
        environment |= ENVIRONMENT
    return subprocess.Popen(
        command, cwd=HERE, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )  # fmt: skip


def commands(name: str, work: str, beam: int) -> list[list[str]]:
    """Who takes part in a job."""
    job = JOBS[name]
    given = [work, name, *(["--beam", str(beam)] if work == "decode" else [])]
    ours = [sys.executable, OURS, *given]
    sides = [[*ours, "--precision", each] for each in PRECISIONS[work]]
    if not PEERS.exists():
        return sides
    if work == "decode":
        peers = ["joeynmt", "ctranslate2"]
    else:
        peers = ["joeynmt" if isinstance(job, PairJob) else "fastai" if job.tied else "torch"]
    for peer in peers:
        sides.append([str(PEERS), "peers.py", peer, *given])
        if peer != "ctranslate2":
            sides.append([*sides[-1], "--medium"])
    return sides


def measure(
    name: str, work: str, beam: int, threads: int, turns: int, seconds: float, peak: dict[str, float]
) -> list[dict[str, Any]]:
    """A row for each side of a job, with an `error` in the place of figures where it does not run."""
    sides: list[Side] = []
    rows: list[dict[str, Any]] = []
    job = JOBS[name]
    which = {"job": name, "work": work, "beam": beam if work == "decode" else None, "threads": threads}
    # A batch job decodes in processes of one thread each, so where there are more cores both ways are tried, of all sides.
    ways = [(threads, 1), *([(1, threads)] if work == "decode" and threads > 1 else [])]
    for command in commands(name, work, beam):
        for each_threads, processes in ways:
            made = Side.start(command, each_threads, processes)
            if isinstance(made, str):
                who = " ".join(command[1:])
                print(f"{name} {work}: {who} does not run: {made}")
                rows.append({**which, "name": who, "error": made})
            else:
                sides.append(made)
    for _ in range(turns):
        for side in sides:
            side.turn(seconds)
    shipped = [median(side.rates) for side in sides if not side.name.startswith("rnnlm") and "medium" not in side.name]
    for side in sides:
        side.end()
        rate = median(side.rates)
        row = {
            **which, "name": side.name,
            "rate": round(rate, 1), "lowest": round(min(side.rates), 1), "highest": round(max(side.rates), 1),
            "ratio": round(rate / max(shipped), 2) if shipped else None,
        }  # fmt: skip
        if work == "train":
            row["of_bf16_peak"] = round(6 * job.matmul_weights * rate / (peak["bf16"] * 1e9), 3)
        elif "ctranslate2" not in side.name:
            assert isinstance(job, PairJob)
            row["of_bf16_peak"] = round(job.decoding_flops(beam) * rate / (peak["bf16"] * 1e9), 3)
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The table, for people."""
    print(f"{'job':<4} {'work':<9} {'cores':>5}  {'who':<34} {'a second':>10} {'of peak':>8} {'x peer':>7}")
    for row in rows:
        if "error" in row:
            continue
        work = row["work"] + (f" {row['beam']}" if row["beam"] else "")
        share, ratio = row.get("of_bf16_peak"), row["ratio"]
        print(
            f"{row['job']:<4} {work:<9} {row['threads']:>5}  {row['name']:<34} {row['rate']:>10,.0f} "
            f"{share if share is not None else '-':>8} {ratio if ratio is not None else '-':>7}"
        )


def main() -> None:
    """Measure what is asked for, print a table, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", default=sorted(JOBS), help="of a b c d e; tokens a second")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--no-decode", action="store_true", help="training only")
    given = parser.parse_args()
    if not PEERS.exists():
        print("no peers take part: they come with make bench-peers")
    peak = peaks(given.threads)
    print("limits:", ", ".join(f"{name} {value:g}" for name, value in peak.items()), "(1e9 a second)")
    rows: list[dict[str, Any]] = []
    for name in given.jobs:
        works = [("train", 1)] + ([("decode", 1), ("decode", 5)] if isinstance(JOBS[name], PairJob) else [])
        for work, beam in works[: 1 if given.no_decode else None]:
            rows += measure(name, work, beam, given.threads, given.turns, given.seconds, peak)
    show(rows)
    described = {name: job.what for name, job in JOBS.items()}
    keep(f"{given.threads} cores", {"torch": torch.__version__, "peaks": peak, "jobs": described, "rows": rows})


if __name__ == "__main__":
    main()
