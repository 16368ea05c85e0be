"""The tour: three small generators from corpora that need no network, registered, and run over new input."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rnnlm import experiment as experiments
from rnnlm.experiment import Experiment
from rnnlm.stages import evaluate, generate, run_all, train
from rnnlm.stages.context import Context, Outcome

EXPERIMENTS = ("demo_text", "demo_translate", "demo_summarize")
WITHOUT_ATTENTION = ("model.attention=none", "model.copy_source=false", "name=demo_translate_without_attention")
HEADLINES = {
    "text": ("bits_per_byte", "perplexity"),
    "translate": ("bleu", "chrf", "exact_match"),
    "summarize": ("rougeL", "rouge1", "exact_match"),
}


def first_experiment(folder: Path) -> Experiment:
    """The experiment that the command starts with."""
    return experiments.load(folder / f"{EXPERIMENTS[0]}.toml")


def run(context: Context, folder: Path) -> Outcome:
    """Do everything.

    Args:
        context: of any experiment.
        folder: with the experiment files.
    """
    started = time.perf_counter()
    rows: list[tuple[Any, ...]] = []
    phenomena: list[tuple[Any, ...]] = []
    times: list[tuple[Any, ...]] = []
    models, outcomes = [], []
    for name in EXPERIMENTS:
        inner = context.with_experiment(experiments.load(folder / f"{name}.toml"))
        outcome = _timed(times, name, "run_all", partial(run_all.run, inner))
        models.append(f"{outcome.model_uri} ({outcome.model_alias})")
        rows += figures(inner.experiment, outcome)
        if inner.experiment.task == "translate":
            phenomena = exact_matches(outcome)
            rows.append(_without_attention(context, folder / f"{name}.toml", times))
        outcomes.append(_timed(times, name, "generate", partial(_generate, inner, outcome)))
    _show(context, rows, phenomena, times, models, outcomes, time.perf_counter() - started)
    return Outcome(
        "demo", artifacts={f"output_{name}": each.artifacts["output"] for name, each in zip(EXPERIMENTS, outcomes)}
    )


def _timed(times: list[tuple[Any, ...]], name: str, what: str, work: Callable[[], Outcome]) -> Outcome:
    started = time.perf_counter()
    outcome = work()
    total = time.perf_counter() - started
    times.append((name, what, outcome.startup_s, total - outcome.startup_s))
    return outcome


def figures(experiment: Experiment, outcome: Outcome) -> list[tuple[Any, ...]]:
    """The model's figures, then those of each baseline."""
    names = HEADLINES[experiment.task]
    split = experiment.evaluate.split

    def row(who: str, prefix: str) -> tuple[Any, ...]:
        values = [(name, outcome.metrics.get(f"{prefix}/{name}")) for name in names]
        return (experiment.name, who, "  ".join(f"{name} {value:.2f}" for name, value in values if value is not None))

    baselines = sorted({key.split("/")[1] for key in outcome.metrics if key.startswith("baseline/")})
    return [row("this model", split), *(row(name.replace("_", " "), f"baseline/{name}") for name in baselines)]


def exact_matches(outcome: Outcome) -> list[tuple[Any, ...]]:
    """A phenomenon, the test rows that have it, and the share of these that is right to the letter, in percent.

    The last line is of all rows.
    """
    assert outcome.record is not None
    report = outcome.record.store.read_json(evaluate.REPORT_FILE)
    subsets = [*report["tags"], {"name": "all", "num_rows": report["num_rows"], "figures": report["figures"]}]
    return [(each["name"], each["num_rows"], 100 * each["figures"]["exact_match"]) for each in subsets]


def _without_attention(context: Context, path: Path, times: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The same translator, trained on the same data for as many steps, but without attention."""
    from rnnlm.stages import ingest, tokenize_corpus

    inner = context.with_experiment(experiments.load(path, WITHOUT_ATTENTION))

    def work() -> Outcome:
        before = [stage.run(inner) for stage in (ingest, tokenize_corpus, train)]
        outcome = evaluate.run(inner)
        outcome.startup_s += sum(each.startup_s for each in before)
        return outcome

    outcome = _timed(times, inner.experiment.name, "train, evaluate", work)
    values = [(name, outcome.metrics.get(f"test/{name}")) for name in HEADLINES["translate"]]
    return (
        "demo_translate",
        "without attention",
        "  ".join(f"{name} {value:.2f}" for name, value in values if value is not None),
    )


def _generate(context: Context, registered: Outcome) -> Outcome:
    from rnnlm.demo.corpora import new_inputs

    name = context.experiment.name
    path = context.store.local("demo")
    assert path is not None, "the demo writes to a local store"
    path.mkdir(parents=True, exist_ok=True)
    file = path / f"{name}_input.txt"
    assert context.experiment.data.demo is not None
    file.write_text("".join(f"{line}\n" for line in new_inputs(context.experiment.data.demo)), encoding="utf-8")
    asked = generate.request(f"{registered.model_uri}", [str(file)], str(path / f"{name}_output"), [], Path.cwd())
    return generate.run(asked, context)


def _show(
    context: Context,
    rows: list[tuple[Any, ...]],
    phenomena: list[tuple[Any, ...]],
    times: list[tuple[Any, ...]],
    models: list[str],
    outcomes: list[Outcome],
    seconds: float,
) -> None:
    console = context.console
    console.say()
    console.say("Figures on test, beside trivial baselines")
    console.table(("experiment", "who", "figures"), rows)
    console.say("\nTranslation: test sentences that are right to the letter, by what they contain")
    console.table(("phenomenon", "sentences", "exact %"), phenomena)
    for model, outcome in zip(models, outcomes, strict=True):
        console.say(f"\n{model}: output in {outcome.artifacts['output']}")
        for note in outcome.notes:
            console.say(note)
    console.say("\nTime")
    console.table(
        ("experiment", "stages", "start-up s", "work s"), [*times, ("all", "", sum(row[2] for row in times), seconds)]
    )
    console.say("\nLook at runs, curves, samples and models in MLflow:")
    console.say(f"  .venv/bin/mlflow ui --host 127.0.0.1 --backend-store-uri {context.options.tracking_uri}")
    console.say("  and open http://127.0.0.1:5000/#/experiments?workflowType=machine_learning")
