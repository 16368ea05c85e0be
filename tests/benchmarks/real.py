"""Decoding by trained models: ours of job e's shape, beside JoeyNMT's of that shape, trained on the same pairs for the same time.

    python tests/benchmarks/real.py FOLDER [--minutes 15] [--turns 3]

FOLDER has Multi30k as the lines of its tokenised files. Both sides train at the same time, on a core each, over the same batches
of the same tokens, with the same dropout, label smoothing, and shape of the learning rate's schedule; ours with what `train` does
by default, an average of the weights and weight decay. Then they take turns at translating the 1,000 sentences of test2016, sorted
by length into batches of 64. BLEU is of the lower-cased, tokenised lines. Where mean lengths are not within 5 % of each other,
speeds are not to be compared, and the run says so.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from jobs import JOBS, REAL_BATCH, REAL_DROPOUT, REAL_SMOOTHING, PairJob, serve_beams
from kept import keep
from ours import pair_config

from rnnlm.data.ragged import Ragged
from rnnlm.data.seq2seq_batches import PairBatches
from rnnlm.decoding.beam import beam_search
from rnnlm.decoding.build import build_decoder
from rnnlm.decoding.sampling import greedy
from rnnlm.evaluation.bleu import bleu
from rnnlm.memory import ENVIRONMENT
from rnnlm.models.seq2seq import Seq2Seq
from rnnlm.optim.config import OptimConfig
from rnnlm.text.tokenizer import Tokenizer
from rnnlm.training.build import build_run, seeded_model
from rnnlm.training.config import ComputeConfig, TrainConfig
from rnnlm.training.loop import training_steps

HERE = Path(__file__).parent
PEERS = HERE.parents[1] / ".venv-peers/bin/python"
SPLITS = {"train": "train", "test": "test_2016_flickr"}
BATCH_TOKENS = 3_000
EPOCHS = 40
"""Whose order of batches is written down for the peer."""
LENGTH_PENALTY = 1.0
PRECISIONS = ("fp32", "bf16", "int8")
JOB = JOBS["e"]


def prepare(data: Path, folder: Path) -> tuple[Tokenizer, list[str]]:
    """Token ids of all splits in one file, and the order of batches; returns what turns ids to text, and the references."""

    def lines(split: str, language: str) -> list[str]:
        return (data / f"{SPLITS[split]}.lc.norm.tok.{language}").read_text("utf-8").splitlines()

    tokenizer = Tokenizer.train(
        lines("train", "de") + lines("train", "en"), kind="bpe", vocab_size=JOB.V, min_frequency=2
    )
    arrays = {}
    for split in SPLITS:
        for side, language in (("source", "de"), ("target", "en")):
            column = Ragged.from_rows(tokenizer.encode(lines(split, language)))
            arrays[f"{split}_{side}"] = column.gather(np.arange(len(column)))
            arrays[f"{split}_{side}_lengths"] = column.lengths
    np.savez(folder / "tokens.npz", **arrays)
    tokens = read(folder)
    batches = PairBatches(tokens["train_source"], tokens["train_target"], batch_tokens=BATCH_TOKENS, seed=0)
    rows = [batches.batch(step).rows for step in range(EPOCHS * batches.steps_per_epoch())]
    np.savez(folder / "batches.npz", rows=np.concatenate(rows), sizes=np.array([len(each) for each in rows]))
    return tokenizer, lines("test", "en")


def read(folder: Path) -> dict[str, Ragged]:
    """The columns that `prepare` wrote."""
    with np.load(folder / "tokens.npz") as arrays:
        names = [name for name in arrays if not name.endswith("_lengths")]
        return {
            name: Ragged.from_rows(np.split(arrays[name], np.cumsum(arrays[f"{name}_lengths"])[:-1])) for name in names
        }


def our_side(folder: Path, minutes: float) -> None:
    """Train, then translate when asked to."""
    assert isinstance(JOB, PairJob)
    tokens = read(folder)
    config = pair_config(replace(JOB, dropout=REAL_DROPOUT))
    run = build_run(
        seeded_model(config, JOB.V, 0),
        train_tokens={"source": tokens["train_source"], "target": tokens["train_target"]},
        valid_tokens=None,
        train=TrainConfig(
            batch_tokens=BATCH_TOKENS, epochs=EPOCHS, max_minutes=minutes, label_smoothing=REAL_SMOOTHING
        ),
        optim=OptimConfig(lr=1e-3, ema_decay=0.998),
        compute=ComputeConfig(threads=1),
        seed=0,
    )
    num_tokens = sum(report.tokens for report in training_steps(run))
    assert run.average is not None
    with run.average.applied():
        model = copy.deepcopy(run.task.model).eval()
    assert isinstance(model, Seq2Seq)
    decoders = {
        each: build_decoder(model, pad_id=0, eos_id=1, vocab_size=JOB.V, precision=each)  # type: ignore[arg-type]
        for each in PRECISIONS
    }
    sources = [tokens["test_source"][row] for row in range(len(tokens["test_source"]))]
    order = sorted(range(len(sources)), key=lambda row: -len(sources[row]))

    @torch.inference_mode()
    def translate(beam: int, variant: str) -> list[list[int]]:
        decoder = decoders[variant]
        outputs: list[list[int]] = [[]] * len(sources)
        for begin in range(0, len(order), REAL_BATCH):
            rows = order[begin : begin + REAL_BATCH]
            start = decoder.start([sources[row] for row in rows])
            limit = 2 * len(sources[rows[0]]) + 10
            if beam == 1:
                decoded = greedy(decoder, start, max_length=limit)
            else:
                decoded = beam_search(decoder, start, beam_size=beam, length_penalty=LENGTH_PENALTY, max_length=limit)
            for row, made in zip(rows, decoded.tokens, strict=True):
                outputs[row] = made.tolist()
        return outputs

    serve_beams(translate, name="rnnlm", variants=PRECISIONS, steps=run.state.step, tokens=num_tokens)


class Side:
    """A process with a core of its own that trains, then answers."""

    def __init__(self, command: list[str], core: int) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        if str(PEERS) not in command:
            environment |= ENVIRONMENT
        self._process = subprocess.Popen(
            command, cwd=HERE, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )  # fmt: skip
        self.facts: dict[str, Any] = {}

    def wait(self) -> None:
        """Until it has trained."""
        self.facts = self._answer()

    def translate(self, beam: int, variant: str) -> tuple[float, list[list[int]]]:
        """Seconds, and the tokens of each sentence."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{beam} {variant}\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer["seconds"], answer["outputs"]

    def end(self) -> None:
        """Let it end."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = next(line for line in self._process.stdout if line.startswith("{"))
        return dict(json.loads(line))


def main() -> None:
    """Train both, measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0, help="of training")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side is not None:
        our_side(given.side, given.minutes)
        return
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer, references = prepare(given.data, folder)
        ours = [sys.executable, "real.py", str(given.data), "--side", place, "--minutes", str(given.minutes)]
        theirs = [str(PEERS), "real_peer.py", place, "--minutes", str(given.minutes)]
        sides = [Side(ours, cores[0]), Side(theirs, cores[-1])]
        for side in sides:
            side.wait()
    rows = []
    for beam in (1, 5):
        asked = [(side, variant) for side in sides for variant in side.facts["variants"]]
        seconds: dict[tuple[Side, str], list[float]] = {pair: [] for pair in asked}
        found: dict[tuple[Side, str], list[list[int]]] = {}
        for _ in range(given.turns):
            for pair in asked:
                used, found[pair] = pair[0].translate(beam, pair[1])
                seconds[pair].append(used)
        for pair in asked:
            side, variant = pair
            score = bleu(tokenizer.decode(found[pair]), references, tokenize="none", lowercase=True)
            rows.append(
                {
                    "beam": beam, "name": f"{side.facts['name']}, {variant}", "bleu": round(score.value, 2),
                    "mean_length": round(fmean(len(each) for each in found[pair]), 2),
                    "rate": round(len(references) / median(seconds[pair]), 1),
                    "signature": score.signature,
                }
            )  # fmt: skip
    for side in sides:
        side.end()
        print(
            f"{side.facts['name']}: {side.facts['steps']:,} steps, {side.facts['tokens']:,} target tokens in {given.minutes:g} min"
        )
    for row in rows:
        print(
            f"beam {row['beam']}  {row['name']:<22} {row['rate']:>8,.1f} sentences/s  BLEU {row['bleu']:.2f}  "
            f"{row['mean_length']:.2f} tokens"
        )
    for beam in (1, 5):
        lengths = [row["mean_length"] for row in rows if row["beam"] == beam]
        if max(lengths) > 1.05 * min(lengths):
            print(f"beam {beam}: mean lengths differ by more than 5 %, so speeds are of unequal work")
    trained = {side.facts["name"]: {key: side.facts[key] for key in ("steps", "tokens")} for side in sides}
    keep("real decoding", {"minutes": given.minutes, "trained": trained, "rows": rows})


if __name__ == "__main__":
    main()
