"""What one GPU does, through the pure library (torch, numpy, safetensors, tokenizers, pydantic): without Ray and MLflow.

    python tests/benchmarks/gpu.py speed                 training and decoding at GNMT's shape beside a bare stack of nn.LSTM
    python tests/benchmarks/gpu.py ptb FOLDER --minutes 8    pipelines/experiments/ptb_awd_lstm.toml, and its perplexity

Both print a line of JSON for each result, and append it to --out where that is given. FOLDER holds ptb.train.txt, ptb.valid.txt
and ptb.test.txt. `--device cpu --small` tries the program itself.
"""

import argparse
import datetime
import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from jobs import PairJob, TextJob
from ours import language_model_config, pair_config, random_rows, training_data
from torch import Tensor, nn

from rnnlm import experiment as experiments
from rnnlm.data.ragged import Ragged
from rnnlm.decoding.beam import beam_search
from rnnlm.decoding.build import build_decoder
from rnnlm.decoding.sampling import greedy
from rnnlm.evaluation.perplexity import score_documents
from rnnlm.models.build import num_parameters
from rnnlm.models.language_model import LanguageModel
from rnnlm.models.seq2seq import Seq2Seq
from rnnlm.optim.config import OptimConfig
from rnnlm.text.tokenizer import Tokenizer
from rnnlm.training.build import build_run, seeded_model, start_at_frequencies
from rnnlm.training.config import ComputeConfig
from rnnlm.training.loop import training_steps
from rnnlm.training.state import export_weights
from rnnlm.training.tracking import MetricStride

EXPERIMENT = Path(__file__).parents[2] / "pipelines/experiments/ptb_awd_lstm.toml"
GNMT = PairJob(
    "GNMT, 4 + 4 layers of 1,024, vocabulary 32k, batch 128 x 30", 1024, 1024, 32_000, 128, 30, 30, 0.2, 4, 4
)
LARGE = TextJob("LM 2x1500, vocabulary 10k, batch 64 x 35", 1500, 1500, 2, 10_000, 64, 35, 0.5)
SMALL_PAIRS = PairJob("small", 16, 16, 50, 4, 6, 6, 0.2, 2, 2)
SMALL_TEXT = TextJob("small", 16, 16, 2, 50, 4, 6, 0.5)
Step = Callable[[], int]


class Session:
    """A device, its clock, and where results go."""

    def __init__(self, device: str, out: Path | None, seconds: float) -> None:
        self.device = torch.device(device)
        self.out = out
        self.seconds = seconds
        self.on_gpu = self.device.type == "cuda"
        self.name = torch.cuda.get_device_name() if self.on_gpu else "CPU"

    def bf16(self) -> AbstractContextManager[object]:
        """For inference: products in bf16, on a GPU."""
        return torch.autocast("cuda", torch.bfloat16) if self.on_gpu else nullcontext()

    def note(self, **result: Any) -> None:
        """Print a result, and keep it."""
        line = json.dumps({"machine": f"1 x {self.name}", "torch": torch.__version__, **result}, ensure_ascii=False)
        print(line, flush=True)
        if self.out is not None:
            with self.out.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def rate(self, step: Step, warm_up: int = 5) -> float:
        """Units a second; the device's queue is empty before and after."""
        for _ in range(warm_up):
            step()
        self.wait()
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < self.seconds:
            done += sum(step() for _ in range(3))
            self.wait()
        return done / (time.perf_counter() - started)

    def compare(self, what: str, sides: dict[str, Step], flops: dict[str, float] | float, peak: float) -> None:
        """Rates of several sides that take turns, with their ratio to the last one and to the peak.

        Args:
            what: the job.
            sides: who does it, by name.
            flops: operations of a unit; of each side, where they differ.
            peak: operations a second.
        """
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(3):
            for name, step in sides.items():
                rates[name].append(self.rate(step, warm_up=5 if turn == 0 else 1))
        *_, reference = (median(each) for each in rates.values())
        for name, each in rates.items():
            rate = median(each)
            of_peak = round((flops[name] if isinstance(flops, dict) else flops) * rate / peak, 3)
            self.note(what=what, side=name, rate=round(rate, 1), ratio=round(rate / reference, 2), of_bf16_peak=of_peak)


def peak_flops(session: Session, size: int) -> float:
    """Operations a second of products of square matrices in bf16."""
    left, right = torch.randn(2, size, size, device=session.device).to(torch.bfloat16)

    def step() -> int:
        for _ in range(10):
            torch.mm(left, right)
        return 10

    return 2 * size**3 * session.rate(step)


class BareText(nn.Module):
    """Embedding, nn.LSTM, output layer: a language model as in torch's manual."""

    def __init__(self, job: TextJob) -> None:
        super().__init__()
        self.embedding = nn.Embedding(job.V, job.E)
        self.dropout = nn.Dropout(job.dropout)
        self.lstm = nn.LSTM(job.E, job.H, job.L, dropout=job.dropout)
        self.output = nn.Linear(job.H, job.V)

    def forward(self, input_TB: Tensor) -> Tensor:
        """Logits."""
        x_TBH, _ = self.lstm(self.dropout(self.embedding(input_TB)))
        logits: Tensor = self.output(self.dropout(x_TBH))
        return logits


class BarePairs(nn.Module):
    """Two stacks of nn.LSTM with GNMT's widths and no attention: each step reads the encoder's last output instead."""

    def __init__(self, job: PairJob) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(job.V, job.E), nn.Embedding(job.V, job.E)
        self.dropout = nn.Dropout(job.dropout)
        self.encoder = nn.LSTM(job.E, job.H // 2, job.encoder_layers, bidirectional=True, dropout=job.dropout)
        self.first = nn.LSTM(job.E, job.H)
        self.above = nn.ModuleList(nn.LSTM(2 * job.H, job.H) for _ in range(job.decoder_layers - 1))
        self.combine = nn.Linear(2 * job.H, job.E)
        self.output = nn.Linear(job.E, job.V)

    def encode(self, source_SB: Tensor) -> Tensor:
        """The last outputs [1, B, H]."""
        memory_SBM, _ = self.encoder(self.dropout(self.source(source_SB)))
        return memory_SBM[-1:]

    def decode(self, input_TB: Tensor, context_1BM: Tensor, states: list[Any]) -> tuple[Tensor, list[Any]]:
        """Logits, and the states after the window."""
        x_TBH, state = self.first(self.dropout(self.target(input_TB)), states[0])
        after = [state]
        context_TBM = context_1BM.expand(len(input_TB), -1, -1)
        for layer, before in zip(self.above, states[1:], strict=True):
            x_TBH, state = layer(self.dropout(torch.cat([x_TBH, context_TBM], 2)), before)
            after.append(state)
        return self.output(torch.tanh(self.combine(torch.cat([x_TBH, context_TBM], 2)))), after

    def forward(self, source_SB: Tensor, input_TB: Tensor) -> Tensor:
        """Logits."""
        return self.decode(input_TB, self.encode(source_SB), [None] * (1 + len(self.above)))[0]


def bare_training(session: Session, model: nn.Module, *inputs: Tensor, vocab_size: int) -> Step:
    """An update a call, of a model that gives logits for its inputs, in bf16, as torch's manual has it."""
    model.to(session.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    target = inputs[-1]

    def step() -> int:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(session.device.type, torch.bfloat16):
            logits = model(*inputs)
        loss = nn.functional.cross_entropy(logits.view(-1, vocab_size).float(), target.reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return target.numel()

    return step


def our_training(session: Session, job: TextJob | PairJob, **changes: Any) -> Step:
    """An update a call of the code that `train` runs."""
    config = language_model_config(job) if isinstance(job, TextJob) else pair_config(job)
    model = seeded_model(config.model_copy(update=changes), job.V, 0)
    data, train = training_data(job)
    run = build_run(
        model, train_tokens=data, valid_tokens=None, train=train, optim=OptimConfig(lr=1e-3),
        compute=ComputeConfig(precision="bf16"), seed=0, device=session.device,
    )  # fmt: skip
    steps = training_steps(run)
    return lambda: next(steps).tokens


def our_decoding(session: Session, job: PairJob, beam: int, attention: str) -> Step:
    """Sentences a call, of T tokens each."""
    model = seeded_model(pair_config(job).model_copy(update={"attention": attention}), job.V, 0).eval()
    assert isinstance(model, Seq2Seq)
    decoder = build_decoder(model.to(session.device), pad_id=0, eos_id=1, vocab_size=job.V)
    rows = random_rows(job, job.B, job.S - 1)  # `<eos>` makes S

    @torch.inference_mode()
    def step() -> int:
        with session.bf16():
            begun = decoder.start(rows)
            if beam == 1:
                greedy(decoder, begun, max_length=job.T, min_length=job.T)
            else:
                beam_search(decoder, begun, beam_size=beam, max_length=job.T, min_length=job.T)
        return job.B

    return step


def bare_decoding(session: Session, job: PairJob) -> Step:
    """As `our_decoding`, greedy: the bare stack with its modules called a token at a time."""
    model = BarePairs(job).to(session.device).eval()
    source_SB = torch.randint(3, job.V, (job.S, job.B), device=session.device)

    @torch.inference_mode()
    def step() -> int:
        with session.bf16():
            context_1BM = model.encode(source_SB)
            ids_1B, states, made = source_SB[:1], [None] * (1 + len(model.above)), []
            for _ in range(job.T):
                logits_1BV, states = model.decode(ids_1B, context_1BM, states)
                ids_1B = logits_1BV.argmax(-1)
                made.append(ids_1B)
            torch.cat(made).cpu()
        return job.B

    return step


def speed(session: Session, *, small: bool) -> None:
    """The tables of training and decoding."""
    pairs, text = (SMALL_PAIRS, SMALL_TEXT) if small else (GNMT, LARGE)
    peak = peak_flops(session, 64 if small else 8192)
    session.note(what="product of matrices in bf16", tflops=round(peak / 1e12, 1))

    def ids(length: int, batch: int, vocab_size: int) -> Tensor:
        return torch.randint(3, vocab_size, (length, batch), device=session.device)

    inputs = ids(text.T, text.B, text.V)
    bare = bare_training(session, BareText(text), inputs, vocab_size=text.V)
    sides = {"rnnlm": our_training(session, text), "nn.LSTM": bare}
    session.compare(f"training, {text.what}", sides, 6 * text.matmul_weights, peak)

    inputs = ids(pairs.S, pairs.B, pairs.V)
    sides = {
        f"rnnlm, attention {kind}": our_training(session, pairs, attention=kind) for kind in ("additive", "dot", "none")
    }
    sides["nn.LSTM, no attention"] = bare_training(session, BarePairs(pairs), inputs, inputs, vocab_size=pairs.V)
    session.compare(f"training, {pairs.what}", sides, 6 * pairs.matmul_weights, peak)

    sides = {
        "rnnlm, attention additive, beam 5": our_decoding(session, pairs, 5, "additive"),
        "rnnlm, attention additive": our_decoding(session, pairs, 1, "additive"),
        "rnnlm, attention none": our_decoding(session, pairs, 1, "none"),
        "nn.LSTM, no attention": bare_decoding(session, pairs),
    }
    flops: dict[str, float] = {name: pairs.decoding_flops(5 if name.endswith("beam 5") else 1) for name in sides}
    session.compare(f"decoding, {pairs.what}", sides, flops, peak)


def ptb(session: Session, folder: Path, minutes: float, overrides: list[str]) -> None:
    """Train, and score valid and test text, each as one stream, in fp32."""
    files = [f"data.{split}={folder / f'ptb.{split}.txt'}" for split in ("train", "valid", "test")]
    experiment = experiments.load(EXPERIMENT, [*files, f"train.max_minutes={minutes}", *overrides])
    texts = {split: (folder / f"ptb.{split}.txt").read_text("utf-8") for split in ("train", "valid", "test")}
    tokenizer = Tokenizer.train(
        [texts["train"]], kind=experiment.tokenizer.kind, vocab_size=experiment.tokenizer.vocab_size,
        min_frequency=experiment.tokenizer.min_frequency,
    )  # fmt: skip
    tokens = {split: Ragged.from_rows(tokenizer.encode_documents([text])) for split, text in texts.items()}
    model = seeded_model(experiment.model, tokenizer.vocab_size, experiment.seed)
    assert isinstance(model, LanguageModel)
    start_at_frequencies(model, {"text": tokens["train"]})
    run = build_run(
        model, train_tokens={"text": tokens["train"]}, valid_tokens={"text": tokens["valid"]}, train=experiment.train,
        optim=experiment.optim, compute=experiment.compute, seed=experiment.seed, device=session.device,
    )  # fmt: skip
    # A plan that is fitted to the first steps, before there are graphs, would be too short.
    run.state.stride = MetricStride.for_steps(run.state.max_steps).stride
    best: dict[str, Tensor] = {}
    started, trained = time.perf_counter(), 0
    for report in training_steps(run):
        trained += report.tokens
        if report.is_best:
            best = export_weights(run)
        if report.validation or report.stop:
            shown = {name: round(value, 2) for name, value in (report.validation or {}).items()}
            print(
                f"{time.perf_counter() - started:6.0f} s, step {report.step} of {report.planned_steps}, {shown}",
                flush=True,
            )
    seconds = time.perf_counter() - started
    assert best, "no validation: nothing was the best"
    model.load_state_dict(best, strict=False)
    model.eval()
    metrics = {}
    for split in ("valid", "test"):
        nats = float(np.sum(score_documents(model, tokens[split])))
        metrics[f"{split}/perplexity"] = math.exp(nats / tokens[split].num_tokens)
    parameters = num_parameters(model)
    options = [f"--minutes {minutes:g}", *overrides]
    session.note(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(), name="ptb_awd_lstm", options=options,
        command=" ".join(["python tests/benchmarks/gpu.py ptb ...", *options]), exit_code=0, split="test", primary="perplexity",
        metrics=metrics, parameters=parameters["total"], layer_parameters=parameters["without_embeddings"],
        train_s=round(seconds, 1), vocabulary=tokenizer.vocab_size, epochs=round(trained / tokens["train"].num_tokens, 1),
        steps=run.state.step, tokens_per_second=round(trained / seconds), precision=run.arithmetic.precision,
    )  # fmt: skip


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["speed", "ptb"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("overrides", nargs="*", metavar="path=value", help="settings of the experiment")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn of a side")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_intermixed_args()
    session = Session(given.device, given.out, given.seconds)
    if given.work == "speed":
        speed(session, small=given.small)
    elif given.folder is None:
        parser.error("ptb: which folder has the files?")
    else:
        ptb(session, given.folder, given.minutes, given.overrides)


if __name__ == "__main__":
    main()
