"""The other side of real.py: JoeyNMT's recurrent model, its loss and its search, in the environment of `make bench-peers`.

.venv-peers/bin/python tests/benchmarks/real_peer.py FOLDER --minutes 15
"""

import argparse
import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joeynmt
import numpy as np
import torch
from jobs import JOBS, REAL_BATCH, REAL_DROPOUT, REAL_SMOOTHING, PairJob, serve_beams
from joeynmt.search import search
from peers import _joeynmt
from torch import Tensor, nn

PAD, BOS, EOS = 1, 2, 3
SHIFT = 1
"""Its ids begin with four specials, ours with three."""
WARM_UP = 0.05
LR = 1e-3
CLIP = 1.0


def columns(folder: Path) -> dict[str, list[np.ndarray]]:
    """The rows of each column, in its ids, without specials."""
    with np.load(folder / "tokens.npz") as arrays:
        return {
            name: np.split(arrays[name].astype(np.int64) + SHIFT, np.cumsum(arrays[f"{name}_lengths"])[:-1])
            for name in arrays
            if not name.endswith("_lengths")
        }


def padded(rows: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Rows side by side, [B, T], and their lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), PAD)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.from_numpy(row)
    return ids, lengths


def sources(rows: list[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and lengths of sources, each with its end."""
    ids, lengths = padded([np.append(row, EOS) for row in rows])
    return ids, (ids != PAD).unsqueeze(1), lengths


def train(model: Any, tokens: dict[str, list[np.ndarray]], folder: Path, minutes: float) -> tuple[int, int]:
    """Adam over the batches that the other side has, for so long; returns steps and target tokens."""
    with np.load(folder / "batches.npz") as arrays:
        batches = np.split(arrays["rows"], np.cumsum(arrays["sizes"])[:-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, betas=(0.9, 0.98))
    model.train()
    started, steps, num_tokens = time.perf_counter(), 0, 0
    while (share := (time.perf_counter() - started) / (60 * minutes)) < 1:
        rows = batches[steps % len(batches)]
        rows = rows[np.argsort([-len(tokens["train_source"][row]) for row in rows], kind="stable")]
        ids, mask, lengths = sources([tokens["train_source"][row] for row in rows])
        target, _ = padded([np.concatenate([[BOS], tokens["train_target"][row], [EOS]]) for row in rows])
        count = int((target[:, 1:] != PAD).sum())
        loss, *_ = model(
            return_type="loss", src=ids, src_length=lengths, src_mask=mask, trg_input=target[:, :-1], trg=target[:, 1:],
            trg_mask=(target[:, :-1] != PAD).unsqueeze(1),
        )  # fmt: skip
        optimizer.param_groups[0]["lr"] = LR * (
            share / WARM_UP
            if share < WARM_UP
            else 0.05 + 0.475 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))
        )
        optimizer.zero_grad()
        (loss / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        steps, num_tokens = steps + 1, num_tokens + count
    return steps, num_tokens


def main() -> None:
    """Train, then translate when asked to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    given = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    job = JOBS["e"]
    assert isinstance(job, PairJob)
    tokens = columns(given.folder)
    model = _joeynmt(replace(job, V=job.V + SHIFT, dropout=REAL_DROPOUT))
    model.loss_function = ("crossentropy", REAL_SMOOTHING)
    steps, num_tokens = train(model, tokens, given.folder, given.minutes)
    model.eval()
    rows = tokens["test_source"]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))

    def translate(beam: int, variant: str) -> list[list[int]]:
        torch.set_float32_matmul_precision("medium" if variant == "medium" else "highest")
        outputs: list[list[int]] = [[]] * len(rows)
        for begin in range(0, len(order), REAL_BATCH):
            chosen = order[begin : begin + REAL_BATCH]
            ids, mask, lengths = sources([rows[row] for row in chosen])
            batch = SimpleNamespace(src=ids, src_mask=mask, src_length=lengths, has_trg=False)
            made, *_ = search(model, batch, 2 * len(rows[chosen[0]]) + 10, 0 if beam == 1 else beam, 1.0)
            for row, found in zip(chosen, made.tolist(), strict=True):
                end = found.index(EOS) if EOS in found else len(found)
                outputs[row] = [token - SHIFT for token in found[:end] if token > EOS]
        return outputs

    name = f"joeynmt {joeynmt.__version__}"
    serve_beams(translate, name=name, variants=("as shipped", "medium"), steps=steps, tokens=num_tokens)


if __name__ == "__main__":
    main()
