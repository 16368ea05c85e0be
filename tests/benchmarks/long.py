"""A long experiment on a benchmark set, or a comparison of several: resumable, each result appended once to docs/results.jsonl.

    make long NAME=ptb_lstm DATA=FOLDER                          one training
    make long NAME=ptb_lstm DATA=FOLDER SEEDS=0,1,2              three, one after another
    make long NAME=tinyshakespeare_cells DATA=FOLDER             all cells and a Transformer at equal parameters and time

FOLDER holds the sets, one folder each. Killed and started again, a command goes on where it was. `OPTIONS="path=value ..."`
are settings or options for all. tests/benchmarks/results.py makes the table of the README of what was appended.
"""

import argparse
import datetime
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kept import machine

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "pipelines" / "experiments"
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
SAMSUM = {f"data.{split}": f"samsum/{split}.jsonl" for split in SPLITS}
FILES: dict[str, dict[str, str]] = {
    "ptb_elman": PTB,
    "ptb_lstm": PTB,
    "ptb_lstm_tuned": PTB,
    "ptb_awd_lstm": PTB,
    "tinyshakespeare_lstm": SHAKESPEARE,
    "tinyshakespeare_transformer": SHAKESPEARE,
    "samsum": SAMSUM,
    "samsum_coverage": SAMSUM,
    "multi30k_de_en": _multi30k("de", "en"),
    "multi30k_de_en_transformer": _multi30k("de", "en"),
    "multi30k_en_de": _multi30k("en", "de"),
    "tatoeba_de_en": {
        f"data.{split}.{side}": f"tatoeba-de-en/{split}.{language}"
        for split in SPLITS
        for side, language in (("source", "de"), ("target", "en"))
    },
    "demo_translate": {},
    "demo_translate_transformer": {},
}
"""Files of each experiment, relative to the folder of the sets."""


@dataclass(frozen=True)
class Comparison:
    """Experiments side by side, the first of them with different settings, all with as many parameters as it has."""

    experiments: tuple[str, ...]
    variants: tuple[str, ...]
    settings: tuple[str, ...] = ()
    """For all."""


DEEP = "model.num_layers=4 model.residual=true model.layer_norm=true model.hidden_dropout=0.2"
"""For cells whose gates read the layer's input alone: one layer of them could only weigh single tokens."""
ATTENTION = tuple(f"model.attention={kind}" for kind in ("none", "dot", "additive"))
COMPARISONS = {
    "tinyshakespeare_cells": Comparison(
        ("tinyshakespeare_lstm", "tinyshakespeare_transformer"),
        (
            *(f"model.cell={cell}" for cell in ("elman", "gru", "lstm")),
            *(f"model.cell={cell} {DEEP}" for cell in ("mingru", "minlstm", "qrnn")),
        ),
    ),
    "multi30k_attention": Comparison(
        ("multi30k_de_en", "multi30k_de_en_transformer"), ATTENTION, ("train.max_minutes=14",)
    ),
    "synthetic_attention": Comparison(
        ("demo_translate", "demo_translate_transformer"), ATTENTION, ("model.copy_source=false",)
    ),
}


def command(name: str, data: Path, options: list[str]) -> list[str]:
    """The stage that does an experiment, or a comparison."""
    comparison = COMPARISONS.get(name, Comparison((name,), ()))
    files = [f"{key}={data / file}" for key, file in FILES[comparison.experiments[0]].items()]
    paths = [str(EXPERIMENTS / f"{each}.toml") for each in comparison.experiments]
    variants = [word for variant in comparison.variants for word in ("--variant", variant)]
    stage = "compare" if name in COMPARISONS else "run_all"
    return [f"pipelines.{stage}", *paths, *files, *comparison.settings, *options, *variants, "--json"]


def run(words: list[str]) -> dict[str, Any]:
    """The JSON line of a stage whose output is passed on."""
    with subprocess.Popen(
        [sys.executable, "-m", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        last = ""
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line
    found: dict[str, Any] = json.loads(last)
    return found


def described(result: dict[str, Any]) -> dict[str, Any]:
    """What is noted of a result besides its figures: training and evaluation of an experiment, the rows of a comparison."""
    artifacts = result["artifacts"] or {}
    if "table" in artifacts:
        return {"rows": json.loads(Path(artifacts["table"]).read_text())}
    if "train_checkpoint" not in artifacts:
        return {}
    folder = Path(artifacts["train_checkpoint"]).parents[1]
    training = json.loads((folder / "artifact.json").read_text())["outputs"]["metrics"]
    report = json.loads(Path(artifacts["evaluate_report"]).read_text())
    return {
        "split": report["split"],
        "primary": report["primary"],
        "signatures": report["signatures"],
        "parameters": training["model/parameters"],
        "layer_parameters": training["model/parameters_without_embeddings"],
        "train_s": training["time/train_s"],
    }


def note(record: dict[str, Any], results: Path) -> bool:
    """Append a result, unless it stands there already. A command that found all work done adds nothing to what was noted."""

    def identity(some: dict[str, Any]) -> list[Any]:
        return [some.get(key) for key in ("name", "options", "machine", "run_id", "metrics", "exit_code")]

    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    if identity(record) in [identity(json.loads(line)) for line in lines]:
        return False
    with results.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    return True


def main() -> int:
    """Run and append; returns the last exit code that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted({*FILES, *COMPARISONS}))
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("--seeds", metavar="N,N,...", help="one training after another")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments, options = parser.parse_known_args()
    seeds = [f"seed={int(seed)}" for seed in arguments.seeds.split(",")] if arguments.seeds else []
    code = 0
    for given in [[*options, seed] for seed in seeds] or [options]:
        result = run(command(arguments.name, arguments.data.resolve(), given))
        record = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "name": arguments.name,
            "options": given,
            "machine": machine(),
            **{key: result[key] for key in ("exit_code", "error", "run_id", "metrics", "seconds")},
            **described(result),
        }
        note(record, arguments.results)
        code = result["exit_code"] or code
    return code


if __name__ == "__main__":
    sys.exit(main())
