import struct
from dataclasses import asdict

import numpy as np
import pytest

from rnnlm.evaluation import costs
from rnnlm.evaluation.baselines import Baseline
from rnnlm.evaluation.plots import (
    _thinned,
    attention_png,
    baselines_png,
    comparison_png,
    curves_png,
    length_bars_png,
    lengths_png,
    report_pngs,
)
from rnnlm.evaluation.report import LengthBin, Report

BINS = [LengthBin(1, 4, 10, 40.0), LengthBin(5, 9, 12, 30.0)]
BASELINES = [
    Baseline("copied_source", "trivial", "", {"bleu": 1.0}),
    Baseline("oracle_sentence", "oracle", "", {"bleu": 40.0}),
    Baseline("xz", "reference", "", {"bits_per_byte": 3.0}),
]


def size(png):
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png.rstrip().endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", png[16:24])


def test_curves():
    steps = list(range(1, 60))
    history = {
        "train/loss_nats": (steps, [9.0, *(3.0 - step / 60 for step in steps[1:])]),
        "valid/perplexity": ([20, 40], [30.0, float("nan")]),
    }
    width, height = size(curves_png(history, title="a_b $x", best_step=40))
    assert width == 1200
    assert height > size(curves_png({"valid/perplexity": history["valid/perplexity"]}))[1]


@pytest.mark.parametrize("history", [{}, {"valid/perplexity": ([], [])}, {"train/loss_nats": ([1], [float("inf")])}])
def test_curves_of_a_training_that_hardly_began(history):
    size(curves_png(history))


def test_long_curves_are_drawn_as_means_of_neighbours():
    values = np.arange(2_500.0)
    thinned = _thinned(values)
    assert len(thinned) == 834
    assert thinned[0] == 1.0
    assert thinned[-1] == 2_499.0
    assert _thinned(values[:1_000]).tolist() == values[:1_000].tolist()
    size(curves_png({"train/loss_nats": (values, values)}))


def test_a_curve_that_stays_flat():
    size(curves_png({"optim/learning_rate": (list(range(10)), [0.5] * 10)}))


def test_bars_beside_baselines_show_only_those_that_have_the_metric():
    assert size(baselines_png("bleu", 20.0, BASELINES))[1] > size(baselines_png("bits_per_byte", 2.0, BASELINES))[1]
    size(baselines_png("perplexity", 12_000.0, []))
    size(baselines_png("bleu", 0.0, []))


def test_bars_by_length():
    assert size(length_bars_png(BINS, "bleu"))[0] == 1200


def test_attention_draws_any_token_and_leaves_out_what_does_not_fit():
    small = attention_png(np.eye(3), ["a", "$b$", " 日本"], ["\n", "x" * 40, "<eos>"])
    large = attention_png(np.ones((41, 42)), ["s"] * 42, ["t"] * 41)
    capped = attention_png(np.ones((40, 40)), ["s"] * 40, ["t"] * 40)
    assert size(large) == size(capped) > size(small)
    assert large == capped


def test_pictures_do_not_depend_on_the_moment():
    assert length_bars_png(BINS, "bleu") == length_bars_png(BINS, "bleu")


def test_pictures_of_a_report():
    report = Report("translate", "test", 22, 22, {"bleu": 20.0}, baselines=BASELINES, lengths=BINS)
    assert list(report_pngs(report)) == ["baselines.png", "by_length.png"]
    assert report_pngs(Report("text", "test", 1, 1, {"perplexity": 2.0})) == {}


def test_a_comparison_of_one_or_many():
    row = {"experiment": "a_$b", "test/bleu": 30.0, "time/train_s": 9.0}
    row |= {"model/parameters_without_embeddings": 1e6, "memory/workers_peak_mb": 500.0}
    width, height = size(comparison_png([row], "test/bleu"))
    assert size(comparison_png([row | {"experiment": str(number)} for number in range(9)], "test/bleu"))[0] == width
    assert height > 400
    writes = {costs.STREAM: 900.0, costs.BATCH: 9_000.0} | {costs.held_key(length): 8.0 for length in costs.LENGTHS}
    assert size(comparison_png([row | writes, row | writes], "test/bleu"))[1] > height


def test_lengths_of_several_experiments():
    rows = [{"experiment": name, "lengths": [asdict(each) for each in BINS]} for name in "ab"]
    assert size(lengths_png(rows, "test/bleu")) == size(lengths_png(rows[:1], "test/bleu"))
