"""What benchmarks do is what they say; `make long` and `make results`: their commands, what they note, and the table that comes
out."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipelines import run_all
from rnnlm.models.build import build_model
from rnnlm.stages import compare

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # the scripts import one another


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


LOOKED_UP = ("target_embedding", "separate_source_embedding", "bridge")
"""Weights of which a token reads a row, and those that only a sentence is multiplied by."""
long, memory, ours, results = script("long"), script("stream_memory"), script("ours"), script("results")


@pytest.mark.parametrize(
    "job",
    [ours.TextJob("text", 8, 8, 1, 50, 4, 6, 0.0), ours.PairJob("pairs", 8, 8, 50, 16, 5, 7, 0.0, 1, 1)],
    ids=lambda job: job.what,
)
def test_a_step_of_a_benchmark_has_as_many_tokens_as_its_job_says(job: Any) -> None:
    step = ours.training(job, "fp32", 1)
    assert [step() for _ in range(3)] == [job.B * job.T] * 3


@pytest.mark.parametrize("name", sorted(long.COMPARISONS))
def test_a_comparison_names_members_that_exist(name: str, tmp_path: Path) -> None:
    stage, *words, _ = long.command(name, tmp_path, ["train.max_minutes=1"])
    assert stage == "pipelines.compare"
    cut = words.index("--variant")
    variants = words[cut + 1 :: 2]
    paths = [word for word in words[:cut] if "=" not in word]
    members = compare.members(paths, [word for word in words[:cut] if "=" in word], variants)
    assert len(members) == len(variants) + 1
    assert len({each.name for each in members}) == len(members)
    assert {each.train.max_minutes for each in members} == {1}


def test_files_of_an_experiment(tmp_path: Path) -> None:
    stage, path, *words = long.command("ptb_lstm", tmp_path, ["seed=3"])
    assert stage == "pipelines.run_all"
    assert Path(path).exists()
    assert words == [*(f"data.{split}={tmp_path}/ptb/ptb.{split}.txt" for split in long.SPLITS), "seed=3", "--json"]
    assert {path.stem for path in long.EXPERIMENTS.glob("*.toml")} > long.FILES.keys()


def result(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "ptb_lstm", "options": ["seed=0"], "machine": "2 x X", "exit_code": 0, "error": None, "run_id": "a",
        "metrics": {"test/perplexity": 80.0}, "split": "test", "primary": "perplexity", "signatures": {},
        "parameters": 9.7e6, "layer_parameters": 3.3e6, "train_s": 3_600.0,
    }  # fmt: skip
    return values | changes


def test_a_job_of_pairs_counts_the_weights_that_its_model_multiplies_by() -> None:
    job = ours.PairJob("pairs", 8, 12, 50, 16, 5, 5, 0.0, 2, 3)
    weights = dict(build_model(ours.pair_config(job), job.V).named_parameters())
    counted = [each.numel() for name, each in weights.items() if each.dim() == 2 and not name.startswith(LOOKED_UP)]
    assert sum(counted) == job.matmul_weights
    assert job.decoding_flops(3) - job.decoding_flops(1) == 2 * 2 * job.target_weights * job.T


@pytest.mark.parametrize("name", memory.STREAMS)
def test_memory_of_a_stream_can_be_measured(name: str) -> None:
    # The kernel counts pages in lots, and this process may have had as much before.
    assert -1 < memory.measure(*memory.STREAMS[name], 300) < 1_000


def test_a_result_is_noted_once(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert long.note(result(), path)
    assert not long.note(result(seconds=1.0), path)
    assert long.note(result(options=["seed=1"], run_id="b"), path)
    assert len(path.read_text().splitlines()) == 2


def test_seeds_are_one_row_with_mean_and_spread() -> None:
    table = results.render(
        [
            result(metrics={"test/perplexity": 99.0}),
            result(),
            result(options=["seed=1"], metrics={"test/perplexity": 83.0}, train_s=3_500.0),
            result(options=["seed=2"], exit_code=1, metrics=None),
            result(options=["seed=0", "compute.precision=fp32"]),
        ]
    ).splitlines()
    assert len(table) == 4
    assert table[2] == (
        f"| `ptb_lstm` | perplexity 81.50 (80.00 to 83.00, 2 seeds) | {results.BESIDE['ptb_lstm']} | 9.70 M (3.30 M) | 3,550 "
        "| 2 x X "
        "| `make long NAME=ptb_lstm DATA=... SEEDS=0,1` |"
    )
    assert 'OPTIONS="compute.precision=fp32"' in table[3]


def test_signatures_nats_and_results_of_before() -> None:
    bleu = result(primary="bleu", metrics={"test/bleu": 39.9}, signatures={"bleu": "nrefs:1|case:lc"}, options=[])
    assert "bleu 39.90; `nrefs:1\\|case:lc`" in results.render([bleu])
    metrics = {"test/bits_per_byte": 2.038, "test/perplexity": 4.108}
    chars = result(primary="bits_per_byte", metrics=metrics)
    assert "bits per byte 2.038, nats a token 1.413" in results.render([chars])
    metrics = {"test/perplexity": 88.0, "test/perplexity_with_cache": 74.0}
    assert "perplexity 88.00, with a neural cache 74.00 |" in results.render([result(metrics=metrics)])
    old = {key: value for key, value in bleu.items() if key in ("name", "options", "machine", "exit_code", "metrics")}
    assert f"| bleu 39.90 | {results.BESIDE['ptb_lstm']} |  |  |" in results.render([old])
    assert results.render([old, bleu]).count("bleu 39.90") == 1
    rouge = {"test/rouge1": 36.0, "test/rouge2": 15.5, "test/rougeL": 31.5}
    assert "rouge1 36.00, rouge2 15.50, rougeL 31.50" in results.render([result(primary="rougeL", metrics=rouge)])


def test_a_comparison_is_a_table_of_its_own() -> None:
    row = {"experiment": "a", "metric": "test/bleu", "test/bleu": 30.0, "time/train_s": 60.0}
    row["lengths"] = [{"shortest": 1, "longest": 9, "num_rows": 5, "value": 31.0}]
    table = results.render([result(name="attention", rows=[row])])
    assert table.splitlines() == [
        "| attention | test/bleu | training, s | 1 to 9 words |", "| --- | --- | --- | --- |", "| a | 30 | 60 | 31.0 |"
    ]  # fmt: skip


def test_the_table_stands_between_its_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme, noted = tmp_path / "README.md", tmp_path / "results.jsonl"
    noted.write_text(json.dumps(result()) + "\n")
    monkeypatch.setattr(sys, "argv", ["results", str(readme), "--results", str(noted)])
    readme.write_text("head\n")
    assert results.main() == 2
    readme.write_text(f"head\n{results.BEGIN}\nold\n{results.END}\ntail\n")
    assert results.main() == 0
    once = readme.read_text()
    assert once.startswith(f"head\n{results.BEGIN}\n\n| experiment |")
    assert once.endswith(f"|\n\n{results.END}\ntail\n")
    assert "old" not in once
    assert results.main() == 0
    assert readme.read_text() == once


@pytest.mark.integration
def test_seeds_one_after_another(
    desk: Path, database: Path, monkeypatch: pytest.MonkeyPatch, last_line: Callable[[], dict[str, Any]]
) -> None:
    """With the real chain, in this process: a training of seconds, killed nowhere, found done the second time."""

    def run(words: list[str]) -> dict[str, Any]:
        stage, *arguments = words
        assert stage == "pipelines.run_all"
        code = run_all.main(arguments)
        line = last_line()
        assert line["exit_code"] == code
        return line

    monkeypatch.setattr(long, "run", run)
    monkeypatch.setenv("RNNLM_STORE", str(desk / "store"))
    (desk / "store").mkdir()
    shutil.copy(database, desk / "store/mlflow.db")
    (desk / "ptb").mkdir()
    for split in long.SPLITS:
        (desk / "ptb" / f"ptb.{split}.txt").write_text(" a dog sees a cat \n the cat sees no dog \n" * 60)
    small = ["model.embedding_size=8", "model.hidden_size=8", "model.softmax_cutoffs=[]", "train.lanes=4"]
    small += ["train.bptt_length=8", "train.max_steps=4", "evaluate.samples=0", "tokenizer.vocab_size=300"]
    noted = desk / "results.jsonl"
    given = ["long", "ptb_lstm", str(desk), "--seeds", "0,1", "--results", str(noted), *small, "--workers", "0"]
    monkeypatch.setattr(sys, "argv", given)
    assert long.main() == 0
    lines = [json.loads(line) for line in noted.read_text().splitlines()]
    assert [line["options"][-1] for line in lines] == ["seed=0", "seed=1"]
    assert all(line["primary"] == "perplexity" and line["train_s"] > 0 and line["parameters"] > 0 for line in lines)
    assert long.main() == 0
    assert len(noted.read_text().splitlines()) == 2
    assert "2 seeds" in results.render(lines)


def test_a_failure_of_the_command_is_passed_on_and_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_line: Callable[[], dict[str, Any]]
) -> None:
    """In a process of its own, as the command is."""
    noted = tmp_path / "results.jsonl"
    given = ["long", "ptb_lstm", str(tmp_path), "--seeds", "0", "--results", str(noted), "train.max_stebs=4"]
    monkeypatch.setattr(sys, "argv", given)
    assert long.main() == 2
    line = json.loads(noted.read_text())
    assert line["exit_code"] == 2
    assert line["options"] == ["train.max_stebs=4", "seed=0"]
    assert "max_steps" in line["error"]
    assert line["error"] == last_line()["error"]
