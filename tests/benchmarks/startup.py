"""How long commands take before, or without, any work.

    make bench-startup

Milliseconds of wall-clock time from start to end, the median of some runs: `--help`, a misspelt key, `import rnnlm`, and
`run_all` of an experiment that is done, which does nothing but find that out.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from kept import keep

ROOT = Path(__file__).parents[2]
TEXT = "pipelines/experiments/demo_text.toml"
SMALL = [
    TEXT, "data.demo=none", "data.unit=line", "tokenizer.vocab_size=300", "model.hidden_size=16", "model.embedding_size=16",
    "train.max_steps=20", "train.max_minutes=none", "tune.trials=0",
]  # fmt: skip
"""An experiment that is done in seconds."""


def run(command: list[str], expected: int = 0) -> float:
    """Seconds that a command takes.

    Raises:
        SystemExit: it ends with another exit code than it should.
    """
    started = time.perf_counter()
    result = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if result.returncode != expected:
        raise SystemExit(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
    return seconds


def done_experiment(folder: Path) -> list[str]:
    """Do a small experiment, and give the command that did it."""
    (folder / "text.txt").write_text(
        "".join(f"{number} and {number + 1} are {2 * number + 1}\n" for number in range(2_000))
    )
    command = ["-m", "pipelines.run_all", *SMALL, f"data.train={folder}/text.txt", "--store", str(folder / "store")]
    run(command)
    return command


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "python -c pass": (["-c", "pass"], 0),
            "import rnnlm": (["-c", "import rnnlm"], 0),
            "train --help": (["-m", "pipelines.train", "--help"], 0),
            "train, a misspelt key": (["-m", "pipelines.train", TEXT, "optim.lrr=1"], 2),
            "run_all, done already": (done_experiment(Path(folder)), 0),
        }
        seconds = {name: [run(*command) for _ in range(given.runs)] for name, command in commands.items()}
    figures = {f"{name}, ms": round(1e3 * median(each)) for name, each in seconds.items()}
    for name, value in figures.items():
        print(f"{name:<28} {value:>7,}")
    keep("start-up", figures)


if __name__ == "__main__":
    main()
