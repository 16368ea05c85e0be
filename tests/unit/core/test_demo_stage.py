"""The tour: which stages it calls for which experiment, and what it shows."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import demo as command
from rnnlm import experiment
from rnnlm.artifacts import Record
from rnnlm.demo import corpora
from rnnlm.integrations.ray_cluster import Resources
from rnnlm.stages import demo, evaluate, generate, ingest, run_all, tokenize_corpus, train
from rnnlm.stages.context import Context, Outcome
from rnnlm.storage import Store

ROOT = Path(__file__).parents[3]
METRICS = {
    "test/bits_per_byte": 2.0, "test/perplexity": 5.0, "baseline/unigram/bits_per_byte": 4.0,
    "test/bleu": 90.0, "test/chrf": 95.0, "baseline/copy/bleu": 3.0, "baseline/train_nearest/chrf": 30.0,
    "test/rougeL": 80.0,
}  # fmt: skip
REPORT = {
    "num_rows": 8,
    "figures": {"exact_match": 0.75},
    "tags": [{"name": "dative", "num_rows": 4, "figures": {"exact_match": 0.5}}],
}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the stages that ran, in order; none of them does anything."""
    calls: list[str] = []
    measured = Store(str(tmp_path / "measured"))
    measured.write_json(evaluate.REPORT_FILE, REPORT)

    def stage(name: str, module: Any) -> None:
        def run(context: Context) -> Outcome:
            calls.append(f"{name} {context.experiment.name}")
            return Outcome(
                name,
                metrics=METRICS,
                model_uri=f"models:/{context.experiment.name}/1",
                model_alias="challenger",
                startup_s=0.5,
                record=Record(name, context.experiment.name, "0" * 64, {}, {}, uri=measured.uri),
            )

        monkeypatch.setattr(module, "run", run)

    for name, module in (
        ("run_all", run_all), ("ingest", ingest), ("tokenize_corpus", tokenize_corpus), ("train", train), ("evaluate", evaluate),
    ):  # fmt: skip
        stage(name, module)

    def run(asked: generate.Request, where: Context) -> Outcome:
        calls.append(f"generate {asked.model}")
        (file,) = asked.inputs
        assert len(Path(file).read_text().splitlines()) >= 3
        return Outcome("generate", artifacts={"output": asked.output}, notes=["    source", "      -> output"])

    monkeypatch.setattr(generate, "run", run)
    monkeypatch.setattr(Context, "ray", SimpleNamespace(started_here=True, resources=Resources(1)))
    monkeypatch.setattr(corpora, "new_inputs", lambda name: [f"{name} {number}" for number in range(3)])
    return calls


def test_the_tour(desk: Path, called: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    assert called == [
        "run_all demo_text", "generate models:/demo_text/1",
        "run_all demo_summarize", "generate models:/demo_summarize/1",
        "run_all demo_translate", "generate models:/demo_translate/1",
        *(f"{stage} demo_translate_without_attention" for stage in ("ingest", "tokenize_corpus", "train", "evaluate")),
    ]  # fmt: skip
    out, err = capfd.readouterr()
    assert "Figures on test, beside trivial baselines" in out
    shown = [" ".join(line.split()) for line in out.splitlines()]
    assert "demo_text this model bits_per_byte 2.00 perplexity 5.00" in shown
    assert "demo_text unigram bits_per_byte 4.00" in shown
    assert "demo_translate train nearest chrf 30.00" in shown
    assert "demo_translate without attention bleu 90.00 chrf 95.00" in shown
    assert "demo_summarize this model rougeL 80.00" in shown
    assert shown.count("-> output") == 3
    assert "dative 4 50.00" in shown
    assert "all 8 75.00" in shown
    assert "models:/demo_text/1 (challenger): output in" in out
    assert any(line.startswith("demo_text run_all 0.50 ") for line in shown)
    assert any(line.startswith("demo_translate_without_attention train 1.50 ") for line in shown)
    assert f"mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///{desk}/store/mlflow.db" in out
    assert sorted(path.name for path in (desk / "store" / "demo").iterdir()) == [
        "demo_summarize_input.txt", "demo_text_input.txt", "demo_translate_input.txt",
    ]  # fmt: skip
    assert err == ""


@pytest.fixture
def two_cores(called: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray of our own with two cores is in use."""
    monkeypatch.setattr(Context, "ray", SimpleNamespace(started_here=True, resources=Resources(2)))


@pytest.mark.usefixtures("two_cores")
def test_with_two_cores_two_chains_run_at_once_with_one_each(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, options, both = run_all.run, [], threading.Barrier(2)

    def meeting_chain(context: Context) -> Outcome:
        options.append(context.options)
        if context.experiment.name != "demo_summarize":
            both.wait(30)
        return chain(context)

    monkeypatch.setattr(run_all, "run", meeting_chain)
    assert command.main([]) == 0
    assert [(each.workers, each.cpus_per_worker) for each in options] == [(1, 1)] * 3


@pytest.mark.usefixtures("two_cores")
def test_a_failure_stops_the_training_beside_it(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, stopped, started = run_all.run, [], []
    begun = threading.Event()

    def other_chain(context: Context) -> Outcome:
        started.append(context.experiment.name)
        if context.experiment.name == "demo_translate":
            assert begun.wait(30)
            raise RuntimeError("the machine is on fire")
        with context.interrupts.deferred() as stop_requested:
            begun.set()
            stopped.append(_wait_for(stop_requested))
        return chain(context)

    monkeypatch.setattr(run_all, "run", other_chain)
    assert command.main([]) == 1
    assert stopped == [True]
    assert sorted(started) == ["demo_text", "demo_translate"]


@pytest.mark.usefixtures("two_cores")
def test_a_failure_of_what_runs_aside_is_a_failure(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    chain = run_all.run

    def other_chain(context: Context) -> Outcome:
        if context.experiment.name == "demo_summarize":
            raise RuntimeError("the machine is wet")
        return chain(context)

    monkeypatch.setattr(run_all, "run", other_chain)
    assert command.main(["--json"]) == 1
    assert "demo: RuntimeError: the machine is wet" in capfd.readouterr().out


def _wait_for(what: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    return what()


def test_a_failure_in_the_tour_is_a_failure(
    desk: Path, called: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(context: Context) -> Outcome:
        raise RuntimeError("the machine is on fire")

    monkeypatch.setattr(run_all, "run", run)
    assert command.main(["--json"]) == 1
    assert "demo: RuntimeError: the machine is on fire" in capfd.readouterr().out


def test_mistakes_in_the_options(desk: Path, called: list[str]) -> None:
    assert command.main(["--workers", "-3"]) == 2
    assert called == []


def test_the_control_differs_in_attention_alone() -> None:
    path = ROOT / "pipelines" / "experiments" / "demo_translate.toml"
    whole, control = experiment.load(path), experiment.load(path, demo.WITHOUT_ATTENTION)
    assert control.model.plain() == whole.model.plain() | {"attention": "none", "copy_source": False}
    assert (control.train, control.optim, control.data) == (whole.train, whole.optim, whole.data)
