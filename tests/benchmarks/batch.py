"""A batch job from end to end, beside the bare decoder on the same rows and cores; and its memory over time.

    python tests/benchmarks/batch.py SOURCE-FILE TARGET-FILE [--rows N] [--minutes 2] [--workers 2] [decode.beam_size=5 ...]

A translator is trained on the files for some minutes, so that sentences end where a trained model ends them. The bare decoder:
as many processes of one thread each, which share the rows out among them, sorted by length, and do nothing but `generate`; half of
the rows before the job and the others after it, as machines get faster and slower. Of the batch job counts the time between the
end of each worker's first part and the last part, start-up apart.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from kept import keep
from memory import tree_bytes

import rnnlm
from rnnlm.config import apply_overrides
from rnnlm.decoding.config import DecodeConfig
from rnnlm.memory import ENVIRONMENT

ROOT = Path(__file__).parents[2]
SAMPLE_S = 15.0
"""Looking at the memory of all processes takes a good part of a second of a core that they need."""
BARE = """
import json, random, sys, time
import torch
import rnnlm
torch.set_num_threads(1)
package, file, settings = sys.argv[1:]
generator = rnnlm.load(package)
settings = generator.settings(**json.loads(settings))
rows = json.loads(open(file).read())
generator.generate(random.Random(0).sample(rows, min(2_000, len(rows))), settings)
print("ready", flush=True)
sys.stdin.readline()
started = time.perf_counter()
for begin in range(0, len(rows), 4_000):
    generator.generate(rows[begin : begin + 4_000], settings)
print(time.perf_counter() - started, flush=True)
"""


def bare(package: Path, rows: list[str], workers: int, settings: dict[str, Any], folder: Path) -> float:
    """Seconds that processes take that only decode."""
    processes = []
    ordered = sorted(rows, key=len)
    for number in range(workers):
        file = folder / f"bare-{number}.json"
        file.write_text(json.dumps(ordered[number::workers]))
        command = [sys.executable, "-c", BARE, str(package), str(file), json.dumps(settings)]
        environment = os.environ | ENVIRONMENT  # as the job's workers have it
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        )
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return max(float(process.communicate()[0]) for process in processes)


class Memory:
    """Watches what the processes that were started from here hold, until it is told to end."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.samples.append((time.time(), tree_bytes()))

    def end(self) -> None:
        """Watch no longer."""
        self._over.set()
        self._thread.join()

    def mean_mb(self, begin: float, end: float) -> float:
        """Over a span of time."""
        return round(fmean(size for when, size in self.samples if begin <= when <= end) / 1e6, 1)


def batch(package: Path, source: Path, workers: int, settings: list[str], folder: Path) -> dict[str, Any]:
    """The command, as people type it; parts are dated by their ledger entries."""
    command = [
        sys.executable, "-m", "pipelines.generate", "--model", str(package), "--input", str(source), "--output", f"{folder}/out",
        "--store", f"{folder}/store", "--workers", str(workers), "--cpus-per-worker", "1", "--json", *settings,
    ]  # fmt: skip
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    memory = Memory()
    said = process.communicate()[0]
    memory.end()
    seconds = time.perf_counter() - started
    assert process.returncode == 0, said
    (job,) = (folder / "out").glob("run=*")
    entries = [(path.stat().st_mtime, json.loads(path.read_text())["rows"]) for path in job.glob("ledger/*.json")]
    entries.sort()
    begin, end = entries[workers - 1][0], entries[-1][0]
    rows = sum(count for _, count in entries[workers:])
    quarter = (end - begin) / 4
    return {
        "rows": sum(count for _, count in entries), "seconds_with_start": round(seconds, 1),
        "rows_per_second": round(rows / (end - begin), 1),
        "pss_mb_first_quarter": memory.mean_mb(begin, begin + quarter), "pss_mb_last_quarter": memory.mean_mb(end - quarter, end),
    }  # fmt: skip


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("settings", nargs="*", default=["decode.beam_size=5"])
    parser.add_argument("--rows", type=int, help="of the source; default all")
    parser.add_argument("--minutes", type=float, default=2.0, help="of training")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_intermixed_args()
    sources, targets = (path.read_text("utf-8").splitlines() for path in (given.source, given.target))
    rows = sources[: given.rows]
    overrides = [setting.removeprefix("decode.") for setting in given.settings]
    decode = DecodeConfig.parse(apply_overrides(DecodeConfig, {}, overrides)).model_dump(exclude_unset=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        generator = rnnlm.fit(
            list(zip(sources, targets, strict=True))[:40_000], task="translate", minutes=given.minutes
        )
        package = generator.save(folder / "package")
        input_file = folder / "rows.txt"
        input_file.write_text("\n".join(rows) + "\n", "utf-8")
        bare_s = bare(package, rows[::2], given.workers, decode, folder)
        figures = batch(package, input_file, given.workers, given.settings, folder)
        bare_s += bare(package, rows[1::2], given.workers, decode, folder)
    alone = len(rows) / bare_s
    share = figures["rows_per_second"] / alone
    print(
        f"{figures['rows']:,} rows, {given.workers} workers: {figures['rows_per_second']:,.0f} rows/s, bare decoder {alone:,.0f}: "
        f"{share:.2f}; memory {figures['pss_mb_first_quarter']:,.0f} MB in the first quarter, "
        f"{figures['pss_mb_last_quarter']:,.0f} MB in the last"
    )
    keep(
        "batch job",
        {**figures, "bare_rows_per_second": round(alone, 1), "share": round(share, 3), "settings": given.settings},
    )


if __name__ == "__main__":
    main()
