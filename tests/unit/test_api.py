"""Fit and load: from what is in memory to a generator, and clear words for what cannot be."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rnnlm
from rnnlm import api
from rnnlm.errors import ConfigError, DataError, RnnlmError, UsageError
from rnnlm.training import arithmetic
from rnnlm.training.guard import Divergence
from rnnlm.training.loop import training_steps
from rnnlm.training.state import StepReport, TrainingRun, export_weights

SECONDS = 20 / 60
SMALL = ["model.hidden_size=32", "model.embedding_size=32", "train.max_steps=60"]
NOUNS = {"cat": "Katze", "cow": "Kuh", "fly": "Fliege", "goose": "Gans", "mouse": "Maus"}
VERBS = {"sleeps": "ruht", "eats": "isst", "waits": "wartet"}


def lines(count: int) -> list[str]:
    dice = random.Random(1)
    return [f"the {dice.choice([*NOUNS])} {dice.choice([*VERBS])} and {dice.choice([*VERBS])}." for _ in range(count)]


def pairs(count: int) -> list[tuple[str, str]]:
    dice = random.Random(2)
    made = []
    for number in range(count):
        noun, verb = dice.choice([*NOUNS]), dice.choice([*VERBS])
        made.append((f"the {noun} {verb} {number % 7}", f"die {NOUNS[noun]} {VERBS[verb]} {number % 7}"))
    return made


def test_text_is_learned() -> None:
    threads = torch.get_num_threads()
    generator = rnnlm.fit(lines(300), minutes=SECONDS, overrides=["model.hidden_size=48", "train.max_steps=150"])
    assert torch.get_num_threads() == threads
    assert generator.task == "text"
    assert generator.lineage["valid_perplexity"] < 12
    assert generator.lineage["train_rows"] < 300
    made = generator(["the "] * 5, min_length=3, max_length=30)
    words = {word.strip(".") for text in made for word in text.split()}
    assert words & {*NOUNS, *VERBS}


def test_what_was_fitted_can_be_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["train.max_steps=4", *SMALL[:2], "model.layer_norm=true"]
    plain = rnnlm.fit(lines(60), minutes=1, overrides=settings).model
    monkeypatch.setattr(api, "best_logit_scale", lambda model, tokens: 0.5)
    scaled = rnnlm.fit(lines(60), minutes=1, overrides=[*settings, "train.calibrate=true"]).model
    assert torch.equal(scaled.last_norm.weight, plain.last_norm.weight / 2)
    assert torch.equal(scaled.norms[0].weight, plain.norms[0].weight)


def test_products_of_the_process_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = torch.get_float32_matmul_precision()
    chosen: list[str] = []

    def choose() -> None:
        torch.set_float32_matmul_precision("medium")
        chosen.append("medium")

    monkeypatch.setattr(arithmetic, "choose_fp32_products", choose)
    rnnlm.fit(lines(60), minutes=1, overrides=["train.max_steps=4", *SMALL[:2]])
    assert chosen
    assert torch.get_float32_matmul_precision() == usual


def test_pairs_are_learned_and_the_package_comes_back(tmp_path: Path) -> None:
    generator = rnnlm.fit(pairs(200), task="translate", minutes=SECONDS, overrides=SMALL)
    assert generator.decode.method == "beam"
    assert generator.normalize.whitespace == "collapse"
    sources = ["the cow waits 3", ""]
    loaded = rnnlm.load(generator.save(tmp_path / "model"))
    assert loaded(sources) == generator(sources)
    nested = tmp_path / "downloaded" / "artifacts" / "package"
    generator.save(nested)
    assert rnnlm.load(tmp_path / "downloaded")(sources) == generator(sources)
    assert rnnlm.load(nested.parent)(sources) == generator(sources)


def test_equal_seeds_give_equal_models() -> None:
    options = ["train.max_steps=5", "train.max_minutes=none", *SMALL[:2]]
    first, again = (rnnlm.fit(lines(60), seed=3, overrides=options) for _ in range(2))
    other = rnnlm.fit(lines(60), seed=4, overrides=options)
    weights = [dict(generator.model.state_dict()) for generator in (first, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0] if name in weights[2])


def diverging(step: int, seen: dict[int, dict[str, torch.Tensor]]) -> Callable[[TrainingRun], Iterator[StepReport]]:
    """The loop of a training that diverges after a step; the weights after each step are kept."""

    def steps(run: TrainingRun) -> Iterator[StepReport]:
        for report in training_steps(run):
            seen[report.step] = export_weights(run)
            yield report
            if report.step == step:
                raise Divergence(step + 1, "loss nan", 0.1)

    return steps


DIVERGING = ["train.max_steps=12", "train.validate_every=4", "train.max_minutes=none", *SMALL[:2]]


def test_what_was_best_before_a_divergence_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, dict[str, torch.Tensor]] = {}
    monkeypatch.setattr(api, "training_steps", diverging(6, seen))
    with pytest.warns(RuntimeWarning, match=r"diverged at step 7: loss nan.* those of step 4") as caught:
        generator = rnnlm.fit(lines(60), overrides=DIVERGING)
    assert [warning.filename for warning in caught] == [__file__]
    weights = generator.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in seen[4].items())
    assert not all(torch.equal(weights[name], tensor) for name, tensor in seen[6].items())


def test_a_divergence_before_the_first_validation_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "training_steps", diverging(3, {}))
    with pytest.raises(RnnlmError, match="diverged at step 4"):
        rnnlm.fit(lines(60), overrides=DIVERGING)


def test_few_rows_are_all_learned_from() -> None:
    generator = rnnlm.fit(["one little line", "and another little line", "   "] * 3, minutes=SECONDS, overrides=SMALL)
    assert generator.lineage["train_rows"] == 6
    assert generator.lineage["valid_perplexity"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": "a string"}, "data: should be a list of strings"),
        ({"data": None}, "data: should be a list of strings"),
        ({"data": {"a": 1}}, "data: should be a list of strings"),
        ({"data": ["fine", 3]}, "row 1 should be one of strings"),
        ({"data": ["a line"], "task": "translate"}, "row 0 should be one of pairs"),
        ({"data": [("a", "b", "c")], "task": "translate"}, "row 0 should be one of pairs"),
        ({"data": [("a", None)], "task": "summarize"}, "row 0 should be one of pairs"),
        ({"data": ["a"], "task": "poetry"}, "task: should be 'text', 'translate' or 'summarize'"),
        ({"data": ["a"], "minutes": 0}, "minutes: should be a number greater than 0"),
        ({"data": ["a"], "minutes": float("nan")}, "minutes: should be"),
        ({"data": ["a"], "minutes": True}, "minutes: should be"),
        ({"data": ["a"], "minutes": "2"}, "minutes: should be"),
        ({"data": ["a"], "seed": -1}, "seed: should be greater than or equal to 0"),
        ({"data": ["a"], "overrides": ["optim.lrr=1"]}, "did you mean 'lr'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rnnlm.fit(**arguments)


def test_nothing_to_learn_from() -> None:
    for nothing in ([], ["", "  \n"]):
        with pytest.raises(DataError, match="nothing to learn from"):
            rnnlm.fit(nothing)
    with pytest.raises(DataError, match="nothing to learn from"):
        rnnlm.fit([("a", " ")], task="translate")


def test_load_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        rnnlm.load(tmp_path / "absent")
    with pytest.raises(UsageError, match="is not a model package"):
        rnnlm.load(tmp_path)


def test_more_data_and_time_make_greater_models() -> None:
    sizes = [api._hidden_size("text", 2_000, tokens, minutes) for tokens, minutes in [(3e4, 0.5), (3e4, 10), (3e6, 10)]]
    assert sizes[0] < sizes[1]
    assert sizes[2] == api._HIDDEN_SIZES[-1]
    with pytest.raises(ConfigError):
        api._experiment([("a",)], "text", 1.0, 0, ["name"])


def test_progress_is_one_line_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    rnnlm.fit(lines(60), minutes=1, overrides=["train.max_steps=4", *SMALL[:2]])
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "valid perplexity" in shown
    assert shown.count("\n") == 1


def test_fit_loads_neither_ray_nor_mlflow_nor_pyarrow() -> None:
    code = (
        "import sys, rnnlm\n"
        "assert 'torch' not in sys.modules\n"
        "rnnlm.fit(['a b c'] * 8, minutes=0.01, overrides=['train.max_steps=2'])('a')\n"
        "print(sorted({'ray', 'mlflow', 'pyarrow', 'datasets', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
