"""The stages, one after another in this process: Ray and MLflow are replaced, everything else is real."""

import dataclasses
import json
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rnnlm import artifacts, assemble, experiment
from rnnlm.console import Console
from rnnlm.data.shards import has_split, read_tokens
from rnnlm.errors import ConfigError, RnnlmError, UsageError
from rnnlm.evaluation import costs, gate
from rnnlm.experiment import Experiment
from rnnlm.interrupts import Interrupts
from rnnlm.models.matching import TOLERANCE, layer_parameters
from rnnlm.models.stack import CELLS
from rnnlm.package import load_package
from rnnlm.stages import compare, evaluate, ingest, register, run_all, tokenize_corpus, train, tune
from rnnlm.stages.context import Context, Options
from rnnlm.training.build import build_run, seeded_model
from rnnlm.training.checkpoint import save_checkpoint
from rnnlm.training.loop import training_steps
from rnnlm.tuning.ledger import Trial

PAIRS = """
task = "translate"
data.train = "pairs.tsv"
data.valid_share = 0.2
data.test_share = 0.2
tokenizer.vocab_size = 270
[model]
embedding_size = 8
hidden_size = 8
[train]
batch_tokens = 400
max_steps = 3
validate_every = 2
[decode]
method = "greedy"
max_length = 5
"""
Make = Callable[..., Context]


@dataclasses.dataclass(frozen=True)
class Placement:
    """As in `ray_cluster`."""

    num_workers: int
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0


def fit(job: Any, session: Any, *, on_progress: Any, stop_requested: Callable[[], bool]) -> Any:
    """`ray_train.train` without Ray: the same loop, here."""
    tokens, settings = job.tokens, job.experiment
    run = build_run(
        seeded_model(settings.model, job.vocab_size, settings.seed),
        train_tokens=read_tokens(tokens, "train"),
        valid_tokens=read_tokens(tokens, "valid") if has_split(tokens, "valid") else None,
        train=settings.train, optim=settings.optim, compute=settings.compute, seed=settings.seed,
    )  # fmt: skip
    for report in training_steps(run, stop_requested=stop_requested):
        on_progress(report.step, report.planned_steps, {"train/loss_nats": 1.0})
    name = f"checkpoints/step-{run.state.step:09d}"
    local = job.folder.local(name)
    local.parent.mkdir(parents=True)
    save_checkpoint(local, run)
    pq.write_table(pa.table(run.history.columns()), job.folder.local("history.parquet"))
    return types.SimpleNamespace(
        checkpoint=name, history="history.parquet", metrics={"valid/perplexity": 9.0}, step=run.state.step,
        planned_steps=run.state.planned_steps, best_step=run.state.best_step or 0, seconds=1.0, tokens_per_second=50.0,
        stop=run.state.stop, startup_s=0.25, peak_mb=100.0, parameters={"total": 10, "without_embeddings": 5},
        notes=(), divergences=(), damaged=(), restarts=0, steps_again=0,
    )  # fmt: skip


class Registry:
    """Registered models in memory, as in `mlflow_registry`."""

    versions: list[dict[str, Any]] = []

    def __init__(self, tracking: Any) -> None:
        pass

    def champion(self, name: str) -> Any:
        holders = [each for each in self.versions if each["alias"] == "champion" and each["name"] == name]
        return _numbered(holders[-1]) if holders else None

    def load(self, version: Any) -> Any:
        return load_package(version.package)

    def made_by(self, name: str, run_id: str, digest: str) -> Any:
        made = [each for each in self.versions if (each["name"], each["run_id"]) == (name, run_id)]
        return _numbered(made[0]) if made else None

    def register(self, package: Path, name: str, **rest: Any) -> Any:
        made = self.made_by(name, rest["run_id"], "")
        if made is None:
            made = {"version": str(len(self.versions) + 1), "package": package, "name": name, "alias": "", **rest}
            self.versions.append(made)
            made = _numbered(made)
        return made

    def set_alias(self, name: str, alias: str, version: str) -> None:
        for each in self.versions:
            if each["name"] == name and (each["version"] == version or each["alias"] == alias):
                each["alias"] = alias if each["version"] == version else ""


def _numbered(version: dict[str, Any]) -> Any:
    """A version as the stages see it."""
    return types.SimpleNamespace(**{key: version[key] for key in ("version", "package", "name", "run_id")})


def search(job: Any, session: Any, *, tracking: Any, on_progress: Any, stop_requested: Any) -> Any:
    """`ray_tune.search`: two trials, the second of which is better."""
    on_progress(1, 2, {"valid/perplexity": 3.0})
    best = Trial(
        "k1", 1, {"optim.lr": 0.004, "train.patience": None}, "done", {"valid/perplexity": 3.0}, 3, "run9", 1.0
    )
    other = Trial("k0", 0, {"optim.lr": 0.1, "train.patience": 3}, "failed", error="it diverged")
    searches.append(job)
    return types.SimpleNamespace(trials=[dataclasses.asdict(other), dataclasses.asdict(best)], best=best)


searches: list[Any] = []


@pytest.fixture
def make(desk: Path, memory_tracking: Any, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Contexts of one store, each as a command of its own would have it."""
    modules = {
        "ray_cluster": types.SimpleNamespace(Placement=Placement),
        "ray_train": types.SimpleNamespace(TrainJob=types.SimpleNamespace, train=fit),
        "ray_tune": types.SimpleNamespace(search=search),
        "tune_trial": types.SimpleNamespace(SearchJob=types.SimpleNamespace),
        "mlflow_registry": types.SimpleNamespace(Registry=Registry),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"rnnlm.integrations.{name}", module)
        monkeypatch.setattr(f"rnnlm.integrations.{name}", module, raising=False)
    monkeypatch.setattr(Registry, "versions", [])
    searches.clear()
    (desk / "pairs.toml").write_text(PAIRS)
    lines = [f"the {n} {animal}\tdie {n} {animal}" for n in range(40) for animal in ("cat", "dog")]
    (desk / "pairs.tsv").write_text("source\ttarget\n" + "\n".join(lines) + "\n")

    def trial_placement(concurrency: int, workers: int, cpus: int | None, _gpus: float | None) -> tuple[Placement, int]:
        return Placement(workers, cpus or 2), concurrency

    def context(file: str, *overrides: str, **options: Any) -> Context:
        place = Options(str(desk / "store"), "sqlite:////x.db", base=desk, **{"workers": 0, **options})
        made = Context(experiment.load(file, overrides), place, Console(), Interrupts())
        made._shared.tracking = memory_tracking
        made._shared.ray = types.SimpleNamespace(trial_placement=trial_placement)  # type: ignore[assignment]
        return made

    return context


def test_the_chain_of_pairs(make: Make, desk: Path, memory_tracking: Any, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_all.run(make("pairs.toml"))
    assert not outcome.skipped
    assert {"test/bleu", "test/chrf"} <= outcome.metrics.keys()
    assert any(key.startswith("baseline/") for key in outcome.metrics)
    assert outcome.model_uri == "models:/pairs/1"
    assert outcome.next_command.startswith("python -m pipelines.generate --model models:/pairs@")
    assert outcome.startup_s >= 0.25
    shown = capsys.readouterr().out
    assert all(f"\n  {stage} " in shown for stage in ("ingest", "tokenize_corpus", "train", "evaluate", "register"))
    stages = {run["stage"]: run for run in memory_tracking.runs.values()}
    assert list(stages) == ["pipeline", "train", "evaluate", "register"]
    assert {run["status"] for run in stages.values()} == {"FINISHED"}
    assert {stages[name]["parent_run_id"] for name in ("train", "evaluate", "register")} == {"run0"}
    assert stages["pipeline"]["artifacts"] == ["ingest.json", "tokenize_corpus.json"]
    assert {"experiment.json", "history.parquet", "curves.png"} <= set(stages["train"]["artifacts"])
    assert {"report.json", "report.md", "samples.json", "pictures/attention_0.png"} <= set(
        stages["evaluate"]["artifacts"]
    )
    (version,) = Registry.versions
    assert version["tags"]["test/bleu"] == f"{outcome.metrics['test/bleu']:.6g}"
    generator = load_package(version["package"])
    assert generator.lineage["experiment"] == "pairs"
    assert generator.decode.max_length == 5
    package = outcome.artifacts["register_package"]
    assert Path(package) == version["package"]
    again = run_all.run(make("pairs.toml"))
    assert again.skipped
    assert (again.metrics, again.model_uri, again.run_id) == (outcome.metrics, "models:/pairs/1", "run0")
    assert len(memory_tracking.runs) == 4
    assert len(Registry.versions) == 1


def test_experiments_side_by_side(make: Make, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = 'kind = "transformer"\nwidth = 8\nnum_heads = 2\ninner_width = 8\n'
    (desk / "other.toml").write_text(PAIRS.replace("embedding_size = 8\nhidden_size = 8\n", sizes))
    context = make("pairs.toml", "model.cell=elman")
    chosen = [context.experiment, make("other.toml").experiment]
    outcome = compare.run(context, chosen)
    assert outcome.metrics.keys() == {"pairs/test/bleu", "other/test/bleu"}
    assert Path(outcome.artifacts["picture"]).read_bytes().startswith(b"\x89PNG")
    rows = json.loads(Path(outcome.artifacts["table"]).read_text())
    assert [(row["experiment"], row["model/parameters"], row["memory/workers_peak_mb"]) for row in rows] == [
        ("pairs", 10, 100.0), ("other", 10, 100.0),
    ]  # fmt: skip
    assert "without emb." in capsys.readouterr().out
    again = compare.run(make("pairs.toml", "model.cell=elman"), chosen)
    assert again.skipped
    assert again.artifacts == outcome.artifacts
    with pytest.raises(UsageError, match="names of their own"):
        compare.run(context, [chosen[0], chosen[0]])
    with pytest.raises(UsageError, match="different tasks"):
        compare.run(context, [chosen[0], make("small.toml").experiment])


TEXT = """
task = "text"
data.train = "corpus.txt"
data.test_share = 0.2
tokenizer.kind = "char"
[model]
embedding_size = 8
hidden_size = 64
num_layers = 1
tie_embeddings = false
[train]
lanes = 2
bptt_length = 8
max_steps = 2
[evaluate]
samples = 0
"""
TINY_TRANSFORMER = """
kind = "transformer"
width = 8
num_heads = 2
num_layers = 1
context_length = 8
"""


def test_cells_and_a_transformer_at_equal_parameters(
    make: Make, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(costs, "_TOKENS", {costs.STREAM: 3, costs.BATCH: 2})
    (desk / "chars.toml").write_text(TEXT)
    head, _, tail = TEXT.partition("[model]")
    (desk / "other.toml").write_text(f"{head}[model]{TINY_TRANSFORMER}[train]{tail.partition('[train]')[2]}")
    variants = [f"model.cell={cell} model.num_layers=2" for cell in CELLS]
    chosen = compare.members(["chars.toml", "other.toml"], ["train.max_steps=1"], variants)
    called = [*(f"chars-{cell}" for cell in CELLS), "other"]
    assert [each.name for each in chosen] == called
    assert {each.train.max_steps for each in chosen} == {1}
    wanted = layer_parameters(experiment.load("chars.toml").model)
    assert all(abs(layer_parameters(each.model) / wanted - 1) <= TOLERANCE for each in chosen)

    context = make("chars.toml").with_experiment(chosen[0])
    compare.run(context, chosen[:2])  # stopped after two
    outcome = compare.run(context, chosen)
    assert not outcome.skipped
    assert list(outcome.metrics) == [f"{name}/test/bits_per_byte" for name in called]
    rows = json.loads(Path(outcome.artifacts["table"]).read_text())
    for row in rows:
        assert row[costs.STREAM] > 0
        assert row[costs.BATCH] > 0
        assert row[costs.held_key(1_000)] == row[costs.held_key(100_000)] > 0
    assert rows[-1][costs.full_cache_key(100_000)] > 20 * rows[-1][costs.full_cache_key(1_000)] > 0
    assert costs.full_cache_key(1_000) not in rows[0]
    assert Path(outcome.artifacts["picture"]).read_bytes().startswith(b"\x89PNG")
    assert "by_length" not in outcome.artifacts
    summary = Path(outcome.artifacts["summary"]).read_text()
    assert "| chars-minlstm |" in summary
    assert "full cache at 100k, MB" in capsys.readouterr().out
    again = compare.run(context, chosen)
    assert again.skipped
    assert (again.artifacts, again.metrics) == (outcome.artifacts, outcome.metrics)


def test_attention_by_length_of_the_source(make: Make, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = PAIRS.replace("hidden_size = 8", "hidden_size = 64").replace("[model]", "[model]\ncopy_source = false")
    (desk / "pairs.toml").write_text(wide)
    chosen = compare.members(["pairs.toml"], [], [f"model.attention={kind}" for kind in ("none", "dot", "additive")])
    outcome = compare.run(make("pairs.toml").with_experiment(chosen[0]), chosen)
    rows = json.loads(Path(outcome.artifacts["table"]).read_text())
    assert [row["experiment"] for row in rows] == ["pairs-none", "pairs-dot", "pairs-additive"]
    assert rows[0]["lengths"][0].keys() == {"shortest", "longest", "num_rows", "value"}
    assert Path(outcome.artifacts["by_length"]).read_bytes().startswith(b"\x89PNG")
    assert "words |" in Path(outcome.artifacts["summary"]).read_text()
    assert "words" in capsys.readouterr().out


def test_comparisons_that_make_no_sense(make: Make) -> None:
    with pytest.raises(UsageError, match="at least one EXPERIMENT"):
        compare.members([], [])
    with pytest.raises(UsageError, match="should be PATH=VALUE"):
        compare.members(["pairs.toml"], [], ["model.cell"])
    with pytest.raises(UsageError, match="should be PATH=VALUE"):
        compare.members(["pairs.toml"], [], [""])
    with pytest.raises(ConfigError, match="attention"):
        compare.members(["pairs.toml"], [], ["model.attention=loud"])
    with pytest.raises(UsageError, match="no width gives"):
        compare.members(["pairs.toml"], [], ["model.embedding_size=4000"])


def test_another_mlflow_gets_everything_again(make: Make, memory_tracking: Any) -> None:
    first = run_all.run(make("pairs.toml"))
    logged = {run["stage"]: run for run in memory_tracking.runs.values()}
    memory_tracking.runs.clear()
    again = run_all.run(make("pairs.toml"))
    assert again.metrics == first.metrics
    relogged = {run["stage"]: run for run in memory_tracking.runs.values()}
    assert list(relogged) == ["pipeline", "train", "evaluate", "register"]
    assert set(relogged["train"]["artifacts"]) >= {"history.parquet", "curves.png"}
    assert relogged["train"]["metrics"].keys() >= {"valid/perplexity"}
    assert relogged["evaluate"]["metrics"] == logged["evaluate"]["metrics"]
    assert sorted(relogged["evaluate"]["artifacts"]) == sorted(logged["evaluate"]["artifacts"])


def test_other_contents_of_the_same_files_get_a_parent_run_of_their_own(
    make: Make, desk: Path, memory_tracking: Any
) -> None:
    before = (desk / "pairs.tsv").read_text()
    first = run_all.run(make("pairs.toml"))
    (desk / "pairs.tsv").write_text(before.replace("cat\tdie", "cow\tzwei"))
    other = run_all.run(make("pairs.toml"))
    assert other.run_id != first.run_id
    assert other.metrics != first.metrics
    for outcome in (first, other):
        assert memory_tracking.runs[outcome.run_id]["metrics"] == outcome.metrics
        children = [run["stage"] for run in memory_tracking.runs.values() if run.get("parent_run_id") == outcome.run_id]
        assert children == ["train", "evaluate", "register"]
    assert run_all.run(make("pairs.toml")).run_id == other.run_id
    (desk / "pairs.tsv").write_text(before)
    assert run_all.run(make("pairs.toml")).run_id == first.run_id


def test_a_search_comes_before_the_training(make: Make, desk: Path, memory_tracking: Any) -> None:
    (desk / "pairs.toml").write_text(
        PAIRS + '[tune]\ntrials = 2\n[tune.space]\n"optim.lr" = {kind = "log_uniform", low = 1e-3, high = 1e-1}\n'
    )
    outcome = run_all.run(make("pairs.toml", cpus_per_worker=1))
    (job,) = searches
    assert job.placement == Placement(0, 1)
    assert job.metric == "valid/perplexity"
    best = Path(outcome.artifacts["tune_best"])
    record = make(str(best)).newest("train")
    assert record.settings["optim"]["lr"] == 0.004
    loaded = experiment.load(best)
    assert (loaded.name, loaded.optim.lr, loaded.tune.trials) == ("pairs", 0.004, 0)
    assert loaded.settings("train") == record.settings
    trials = pq.read_table(outcome.artifacts["tune_trials"]).to_pylist()
    assert [(row["trial"], row["status"], row["optim.lr"], row["error"]) for row in trials] == [
        (0, "failed", 0.1, "it diverged"), (1, "done", 0.004, None),
    ]  # fmt: skip
    (run,) = [run for run in memory_tracking.runs.values() if run["stage"] == "tune"]
    assert run["artifacts"] == ["best.toml", "trials.parquet", "trials.json"]
    assert run["tags"]["rnnlm.best_run"] == "run9"
    assert "  * trial 1" in "\n".join(" " + note for note in outcome.notes)
    memory_tracking.runs.clear()
    again = tune.run(make("pairs.toml"))
    assert len(searches) == 1
    assert memory_tracking.runs[again.run_id]["artifacts"] == ["best.toml", "trials.parquet"]


def test_what_is_unset_stays_unset_in_the_best_settings() -> None:
    tree = tune._without_null({"a": None, "b": {"c": [None, 1]}})
    assert tree == {"a": "none", "b": {"c": ["none", 1]}}


def test_a_search_without_a_result(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"tune\.trials: is 0, so there is nothing to search"):
        tune.run(make("pairs.toml"))
    space = ['tune.space={"optim.lr" = {kind = "choice", values = [0.1]}}', "tune.trials=1"]
    context = make("pairs.toml", *space, workers=3)
    ingest.run(context)
    tokenize_corpus.run(context)
    nothing = types.SimpleNamespace(trials=[], best=None)
    jobs: list[Any] = []
    module = types.SimpleNamespace(search=lambda job, *_args, **_more: jobs.append(job) or nothing)
    monkeypatch.setitem(sys.modules, "rnnlm.integrations.ray_tune", module)
    monkeypatch.setattr("rnnlm.integrations.ray_tune", module)
    with pytest.raises(RnnlmError, match="no trial got as far as a validation"):
        tune.run(context)
    assert jobs[0].placement == Placement(3, 2)


def test_the_chain_of_text(make: Make, memory_tracking: Any) -> None:
    context = make("small.toml", "evaluate.samples=2")
    for stage in (ingest, tokenize_corpus, train, evaluate):
        outcome = stage.run(context)
    assert {"test/perplexity", "test/bits_per_byte"} <= outcome.metrics.keys()
    registered = register.run(context)
    assert registered.record is not None
    first = registered.record.outputs
    assert first["alias"] in {"champion", "challenger"}
    assert first["reason"]
    Registry.versions[0]["alias"] = "champion"
    assert not register.run(make("small.toml", "evaluate.samples=2", "register.max_rows=2")).skipped
    assert Registry.versions[1]["alias"] == "challenger"  # equal is not better


def test_a_calibrated_model_is_what_is_measured_and_registered(make: Make, memory_tracking: Any) -> None:
    settings = ("data.valid_share=0.3", "model.tie_embeddings=false", "optim.lr=0.5", "train.max_steps=30")
    plain, context = (make("small.toml", f"train.calibrate={flag}", *settings) for flag in ("false", "true"))
    for stage in (ingest, tokenize_corpus, train):
        before, outcome = stage.run(plain), stage.run(context)
    assert before.record is not None
    assert outcome.record is not None
    scale = outcome.record.outputs["logit_scale"]
    assert scale != 1.0
    assert f"  calibrated on the valid split: logits times {scale:.3f}" in outcome.notes
    assert memory_tracking.runs[outcome.record.run_id]["tags"]["rnnlm.logit_scale"] == f"{scale:.4f}"
    origins = [assemble.lineage(context.store, each) for each in (before.record, outcome.record)]
    untouched, calibrated = (assemble.generator_of(origin, context.experiment.decode).model for origin in origins)
    torch.testing.assert_close(calibrated.output_weight, untouched.output_weight * scale)
    assert "logit_scale" not in before.record.outputs
    ours, theirs = evaluate.run(context).metrics, evaluate.run(plain).metrics
    assert ours["test/perplexity"] != theirs["test/perplexity"]
    register.run(context)
    registered = load_package(Registry.versions[-1]["package"]).model
    assert torch.equal(registered.output_weight, calibrated.output_weight)


def test_without_a_valid_split_nothing_is_scaled(make: Make) -> None:
    context = make("small.toml", "train.calibrate=true", "model.tie_embeddings=false", "data.valid_share=0")
    for stage in (ingest, tokenize_corpus, train):
        outcome = stage.run(context)
    assert outcome.record is not None
    assert outcome.record.outputs["logit_scale"] == 1.0


def test_two_that_register_at_once_take_turns(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = [make("small.toml", f"seed={seed}") for seed in range(2)]
    for context in contexts:
        for stage in (ingest, tokenize_corpus, train, evaluate):
            stage.run(context)
    champions, came = list[bool](), threading.Event()

    def decide(_task: str, _challenger: Any, champion: Any, *_rest: Any, **_more: Any) -> gate.Decision:
        champions.append(champion is not None)
        if len(champions) == 1:
            second.start()
            assert came.wait(60)
        came.set()
        return gate.Decision(True, "perplexity", "is better")

    def say(text: str) -> None:
        if "another version of small is being registered" in text:
            came.set()

    monkeypatch.setattr(gate, "decide", decide)
    monkeypatch.setattr(contexts[1].console, "say", say)
    monkeypatch.setattr(register, "WAIT_S", 0.01)
    second = threading.Thread(target=register.run, args=(contexts[1],))
    register.run(contexts[0])
    second.join(60)
    assert champions == [False, True]
    assert [each["alias"] for each in Registry.versions] == ["", "champion"]
    assert not [name for name in contexts[0].store.files() if "lease" in name]


@pytest.mark.parametrize("killed", ["before the alias", "after the alias", "before another champion"])
def test_a_decision_stands_while_it_is_about_the_present_champion(
    make: Make, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    context = make("small.toml")
    for stage in (ingest, tokenize_corpus, train, evaluate):
        stage.run(context)
    champions: list[bool] = []

    def decide(_task: str, _challenger: Any, champion: Any, *_rest: Any, **_more: Any) -> gate.Decision:
        champions.append(champion is not None)
        return gate.Decision(champion is None, "perplexity", f"reason {len(champions)}")

    set_alias = Registry.set_alias

    def die(self: Registry, *arguments: str) -> None:
        if killed == "after the alias":
            set_alias(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(gate, "decide", decide)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "set_alias", die)
        with pytest.raises(KeyboardInterrupt):
            register.run(context)
    (ours,) = Registry.versions
    if killed == "before another champion":
        Registry.versions.append({**ours, "version": "2", "run_id": "another", "alias": "champion"})
    outcome = register.run(make("small.toml"))
    assert outcome.record is not None
    assert len(champions) == (2 if killed == "before another champion" else 1)
    assert champions[-1] == (killed == "before another champion")
    assert outcome.record.outputs["reason"] == f"reason {len(champions)}"
    assert ours["alias"] == outcome.model_alias == ("champion" if len(champions) == 1 else "challenger")


def test_a_model_that_nothing_can_judge_is_not_promoted(make: Make) -> None:
    context = make("small.toml", "data.valid_share=0")
    for stage in (ingest, tokenize_corpus, train, evaluate, register):
        outcome = stage.run(context)
    assert outcome.model_alias == "challenger"
    assert outcome.record is not None
    assert "neither a gate split nor a valid one" in outcome.record.outputs["reason"]


def test_a_register_from_a_run(make: Make) -> None:
    context = make("small.toml")
    for stage in (ingest, tokenize_corpus, train, evaluate):
        stage.run(context)
    measured = context.newest("evaluate")
    assert register.run(make("small.toml", from_run=measured.run_id)).record is not None
    train_folder = context.newest("train").store
    train_folder.delete("artifact.json")
    with pytest.raises(UsageError, match="the training that it measured is gone"):
        register.run(make("small.toml", from_run=measured.run_id))


def test_an_evaluation_of_a_split_that_is_not_there(make: Make) -> None:
    context = make("small.toml", "data.test_share=0")
    for stage in (ingest, tokenize_corpus, train):
        stage.run(context)
    with pytest.raises(UsageError, match="the corpus has no test split"):
        evaluate.run(context)
    origin = assemble.lineage(context.store, context.newest("train"))
    assert origin.has_split("gate")
    assert not origin.has_split("test")
    summary = origin.summary()
    assert summary["experiment"] == "small"
    assert summary["records"].keys() == {"ingest", "tokenize_corpus", "train"}
    artifacts.folder(context.store, "small", "ingest", origin.ingest.digest).delete("artifact.json")
    with pytest.raises(RnnlmError, match=r"its ingest is gone from .*; run that stage again"):
        assemble.lineage(context.store, context.newest("train"))


def test_another_tokenizer_is_measured_on_the_text(make: Make) -> None:
    contexts = [make("small.toml"), make("small.toml", "tokenizer.kind=bpe", "tokenizer.vocab_size=300")]
    for context in contexts:
        for stage in (ingest, tokenize_corpus, train):
            stage.run(context)
    chars, pieces = (assemble.lineage(each.store, each.newest("train")) for each in contexts)
    generator = assemble.generator_of(pieces, contexts[1].experiment.decode)
    settings = assemble.gate_settings(contexts[0].experiment.evaluate, 2)
    assert (settings.max_rows, settings.samples) == (2, 0)
    phases: list[str] = []
    report = assemble.evaluate_split(
        generator, chars, "valid", settings, baselines=False, progress=lambda phase, *_: phases.append(phase)
    )
    assert report.figures["bits_per_byte"] is not None
    assert phases


def test_a_large_corpus_is_tokenized_by_ray(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import rnnlm.data.tokenizing as tokenizing

    taken: list[Any] = []

    def with_ray(*arguments: Any) -> Any:
        taken.append(arguments)
        return iter(())

    def tokenize(*_args: Any, distribute: Any, **_more: Any) -> dict[str, Any]:
        assert list(distribute("rows")) == []
        return {"tokenizer": {"vocab_size": 9, "kind": "bpe"}, "splits": {"train": {"rows": 2, "tokens": 1_234}}}

    module = types.SimpleNamespace(tokenize_with_ray=with_ray)
    monkeypatch.setitem(sys.modules, "rnnlm.integrations.ray_tokenize", module)
    monkeypatch.setattr("rnnlm.integrations.ray_tokenize", module, raising=False)
    monkeypatch.setattr(tokenizing, "tokenize_corpus", tokenize)
    context = make("small.toml")
    ingest.run(context)
    outcome = tokenize_corpus.run(context)
    assert taken
    assert outcome.notes == ["  vocabulary: 9 entries (bpe)", "  train: 2 rows, tokens: 1,234"]


def test_a_hub_set_and_a_demo_are_looked_at(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_hub(data: Any, base: Path) -> Any:
        raise UsageError(f"{data.hub}: no such set")

    module = types.SimpleNamespace(open_hub=open_hub)
    monkeypatch.setitem(sys.modules, "rnnlm.integrations.hf_datasets", module)
    monkeypatch.setattr("rnnlm.integrations.hf_datasets", module, raising=False)
    with pytest.raises(UsageError, match="nobody/none: no such set"):
        ingest.run(make("small.toml", "data.train=none", "data.hub=nobody/none"))
    sources = ingest.find_sources(make("pairs.toml", "data.train=none", "data.demo=translation"))
    assert list(sources.digests) == ["demo/translation"]


def test_the_report_of_ingest_names_everything(make: Make, desk: Path) -> None:
    (desk / "pairs.tsv").write_text("source\ttarget\n" + "".join(f"a {n}\tb\n" for n in range(40)) + "a 1\tb\nx\n")
    (desk / "test.tsv").write_text("source\ttarget\na 1\tb\nc\td\n")
    outcome = ingest.run(make("pairs.toml", "data.test=test.tsv", "data.valid_share=0"))
    assert outcome.notes == [
        "  train: 42 rows, 41 units, 40 kept, 1 put aside (wrong_number_of_fields 1), 1 duplicates",
        "  test: 2 rows, 2 units, 2 kept, 1 also in train",
    ]


def test_best_settings_become_an_experiment(make: Make) -> None:
    context = make("small.toml")
    record = artifacts.Record(
        "tune", "small", "d", {}, {}, outputs={"settings": {"optim.lr": 0.5, "model.tie_embeddings": False}}
    )
    best: Experiment = tune.best_experiment(context.experiment, record)
    assert (best.optim.lr, best.model.tie_embeddings) == (0.5, False)
    json.dumps(best.plain())
