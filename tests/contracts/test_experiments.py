"""Every experiment file that is shipped: it is there, makes sense, says what it is, and has the size that it says."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

from rnnlm import experiment, preflight
from rnnlm.experiment import Experiment
from rnnlm.models.build import build_model, num_parameters
from rnnlm.models.config import Seq2SeqConfig
from rnnlm.models.matching import TOLERANCE

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "pipelines" / "experiments"
HUB = {
    "wikitext2": "Salesforce/wikitext",
    "wikitext103": "Salesforce/wikitext",
    "iwslt14_de_en": "bbaaaa/iwslt14-de-en",
    "wmt14_en_de": "wmt/wmt14",
    "cnn_dailymail": "abisee/cnn_dailymail",
    "xsum": "EdinburghNLP/xsum",
}
FILES = {
    *("demo_text", "demo_translate", "demo_translate_transformer", "demo_summarize"),
    *("ptb_elman", "ptb_lstm", "ptb_lstm_tuned", "ptb_awd_lstm"),
    *("tinyshakespeare_lstm", "tinyshakespeare_transformer"),
    *("multi30k_de_en", "multi30k_de_en_transformer", "multi30k_en_de", "tatoeba_de_en"),
    *("samsum", "samsum_coverage"),
    *HUB,
}
VOCABULARIES = {"ptb": 10_001, "tinyshakespeare": 68, "wikitext2": 33_280, "wikitext103": 267_737}
"""What the corpus has, where that is less than the most that the file allows."""
SIZE = re.compile(r"^# ([\d.]+) M parameters \(([\d.]+) M without embeddings\); ", re.M)
PLACE = re.compile(r"\b(minutes?|hours|days)\b[^;]* (two cores|one core|one GPU|eight GPUs)")


def load(name: str, *overrides: str) -> Experiment:
    path = FOLDER / f"{name}.toml"
    data = tomllib.loads(path.read_text()).get("data", {})
    given = [] if {"hub", "demo"} & data.keys() else ["data.train=corpus.tsv"]
    return experiment.load(path, [*given, *overrides])


def parameters(name: str) -> dict[str, int]:
    the_experiment = load(name)
    found = [size for prefix, size in VOCABULARIES.items() if name.startswith(prefix)]
    with torch.device("meta"):
        return num_parameters(build_model(the_experiment.model, [*found, the_experiment.tokenizer.vocab_size][0]))


def header(name: str) -> str:
    lines = (FOLDER / f"{name}.toml").read_text().splitlines()
    return "\n".join(lines[: next(place for place, line in enumerate(lines) if not line.startswith("#"))])


def test_all_that_are_promised_are_there() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == FILES
    assert len(FILES) == 22
    assert {name: load(name).data.hub for name in FILES if load(name).data.hub} == HUB


@pytest.mark.parametrize("name", sorted(FILES))
def test_each_can_be_estimated(name: str) -> None:
    the_experiment = load(name)
    assert the_experiment.name == name
    found = preflight.estimate(the_experiment, 10_000_000, parameters(name)["total"], 0.1)
    assert found.steps > 0
    assert found.memory_bytes < 60e9
    assert found.seconds is not None


@pytest.mark.parametrize("name", sorted(FILES))
def test_each_says_how_large_it_is_how_long_it_takes_and_what_comes_out(name: str) -> None:
    text = header(name)
    (said,) = SIZE.findall(text)
    counted = parameters(name)
    for number, key in zip(said, ("total", "without_embeddings"), strict=True):
        assert abs(float(number) - counted[key] / 1e6) <= 0.05 + 1e-9, f"{key}: {counted[key]:,}"
    told = " ".join(text.replace("#", " ").split())
    assert PLACE.search(told)
    assert "not measured" in told or "(seed 0)" in told


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.endswith("_transformer")))
def test_a_transformer_has_as_many_parameters_as_the_lstm_beside_it(name: str) -> None:
    stem = name.removesuffix("_transformer")
    beside = stem if stem in FILES else f"{stem}_lstm"
    ours, theirs = (parameters(each)["without_embeddings"] for each in (name, beside))
    assert abs(ours / theirs - 1) <= TOLERANCE
    assert load(name).data == load(beside).data
    assert load(name).train.bptt_length == getattr(load(name).model, "context_length", 0) or not load(name).is_text


def test_what_single_files_are_for() -> None:
    assert load("ptb_elman").model.cell == "elman"
    assert load("ptb_awd_lstm").model.weight_drop == 0.5
    for name in ("samsum", "samsum_coverage"):
        model = load(name).model
        assert isinstance(model, Seq2SeqConfig)
        assert model.copy_source
    assert load("samsum_coverage").train.coverage_reg == 1.0
    assert load("samsum_coverage").model == load("samsum").model
    for cell in ("elman", "gru", "mingru", "minlstm", "qrnn"):
        assert load("tinyshakespeare_lstm", f"model.cell={cell}").model.cell == cell
