"""A long experiment on a benchmark set: resumable, its result appended to docs/results.jsonl.

    make long NAME=ptb_lstm DATA=FOLDER

FOLDER holds the sets, one folder each. Killed and started again, it goes on where it was.
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results.jsonl"
MULTI30K = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
SPLITS = ("train", "valid", "test")


def _multi30k(source: str, target: str) -> dict[str, str]:
    return {
        f"data.{split}.{side}": f"multi30k/tok/{name}.lc.norm.tok.{language}"
        for split, name in MULTI30K.items()
        for side, language in (("source", source), ("target", target))
    }


PTB = {f"data.{split}": f"ptb/ptb.{split}.txt" for split in SPLITS}
SHAKESPEARE = {"data.train": "tinyshakespeare/train.txt", "data.test": "tinyshakespeare/valid.txt"}
FILES = {
    "ptb_lstm": PTB,
    "ptb_elman": PTB,
    "ptb_lstm_large": PTB,
    "ptb_awd_lstm": PTB,
    "tinyshakespeare_lstm": SHAKESPEARE,
    "tinyshakespeare_transformer": SHAKESPEARE,
    "samsum": {f"data.{split}": f"samsum/{split}.jsonl" for split in SPLITS},
    "multi30k_de_en": _multi30k("de", "en"),
    "multi30k_de_en_transformer": _multi30k("de", "en"),
    "multi30k_en_de": _multi30k("en", "de"),
    "tatoeba_de_en": {
        f"data.{split}.{side}": f"tatoeba-de-en/{split}.{language}"
        for split in SPLITS
        for side, language in (("source", "de"), ("target", "en"))
    },
}
"""Files of each experiment, relative to the folder of the sets."""


def machine() -> str:
    """The processor's name and the cores that may be used."""
    import os

    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return f"{len(os.sched_getaffinity(0))} x {names[0] if names else platform.machine()}"


def main() -> int:
    """Run and append; returns the command's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(FILES))
    parser.add_argument("data", type=Path)
    parser.add_argument("options", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    overrides = [f"{key}={arguments.data.resolve() / file}" for key, file in FILES[arguments.name].items()]
    experiment = ROOT / "pipelines" / "experiments" / f"{arguments.name}.toml"
    command = [sys.executable, "-m", "pipelines.run_all", str(experiment), *overrides, *arguments.options, "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        last = ""
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line
    result = json.loads(last)
    record = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "name": arguments.name,
        "options": arguments.options,
        "machine": machine(),
        **{key: result[key] for key in ("exit_code", "error", "metrics", "seconds")},
    }
    if not result["skipped"]:
        with RESULTS.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
