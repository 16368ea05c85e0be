"""The tour: three small generators from corpora that need no network, registered, and run over new input."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rnnlm import experiment as experiments
from rnnlm.console import Console
from rnnlm.experiment import Experiment
from rnnlm.interrupts import Interrupts
from rnnlm.stages import evaluate, generate, ingest, run_all, tokenize_corpus, train
from rnnlm.stages.context import Context, Options, Outcome

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
    times: list[tuple[Any, ...]] = []
    text, translate, summarize = (experiments.load(folder / f"{name}.toml") for name in EXPERIMENTS)
    control = context.with_experiment(experiments.load(folder / "demo_translate.toml", WITHOUT_ATTENTION))

    def chain(inner: Context) -> Outcome:
        return _timed(times, inner.experiment.name, "run_all", partial(run_all.run, inner))

    def batch(experiment: Experiment, registered: Outcome) -> Outcome:
        inner = context.with_experiment(experiment)
        return _timed(times, experiment.name, "generate", partial(_generate, inner, registered))

    chains, outputs = [], []
    for experiment in (text, translate):
        chains.append(chain(context.with_experiment(experiment)))
        outputs.append(batch(experiment, chains[-1]))
    with _trained_aside(control, times) as options:
        chains.append(chain(context.beside(summarize, options, context.console, context.interrupts)))
    measured = _timed(times, control.experiment.name, "evaluate", partial(evaluate.run, control))
    outputs.append(batch(summarize, chains[-1]))

    rows = [figures(experiment, outcome) for experiment, outcome in zip((text, translate, summarize), chains)]
    rows[1].append((translate.name, "without attention", headline(translate, measured, "test")))
    _show(context, [row for group in rows for row in group], times, chains, outputs, time.perf_counter() - started)
    return Outcome(
        "demo", artifacts={f"output_{name}": each.artifacts["output"] for name, each in zip(EXPERIMENTS, outputs)}
    )


@contextlib.contextmanager
def _trained_aside(control: Context, times: list[tuple[Any, ...]]) -> Iterator[Options]:
    """Train the control while the block runs; where there is no room for that, before it.

    Small steps gain little from more cores, so two trainings at once, with half of them each, take less time than one after
    the other. A block that is left by an error or a signal asks the training to save and stop.

    Args:
        control: the translator without attention.
        times: gets a row.

    Yields:
        With which options the block has room.
    """
    session, options = control.ray_in_use, control.options
    cores = session.resources.num_cpus if session and session.started_here and not session.resources.num_gpus else 1
    if cores < 2 or options.workers is not None or options.cpus_per_worker is not None:
        _timed(times, control.experiment.name, "train", partial(_train, control))
        yield options
        return
    half = replace(options, workers=1, cpus_per_worker=cores // 2)
    interrupts = Interrupts()
    aside = control.beside(control.experiment, half, Console(), interrupts)
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(_timed, times, control.experiment.name, "train, at once", partial(_train, aside))
        try:
            yield half
            training.result()
        except BaseException:
            interrupts.requested = signal.SIGINT
            raise


def _train(control: Context) -> Outcome:
    """Train on the data of the translator, which are there already."""
    before = [stage.run(control) for stage in (ingest, tokenize_corpus)]
    outcome = train.run(control)
    outcome.startup_s += sum(each.startup_s for each in before)
    return outcome


def _timed(times: list[tuple[Any, ...]], name: str, what: str, work: Callable[[], Outcome]) -> Outcome:
    started = time.perf_counter()
    outcome = work()
    total = time.perf_counter() - started
    times.append((name, what, outcome.startup_s, total - outcome.startup_s))
    return outcome


def figures(experiment: Experiment, outcome: Outcome) -> list[tuple[Any, ...]]:
    """The model's figures, then those of each baseline."""
    baselines = sorted({key.split("/")[1] for key in outcome.metrics if key.startswith("baseline/")})
    who = {"this model": experiment.evaluate.split} | {name.replace("_", " "): f"baseline/{name}" for name in baselines}
    return [(experiment.name, name, headline(experiment, outcome, prefix)) for name, prefix in who.items()]


def headline(experiment: Experiment, outcome: Outcome, prefix: str) -> str:
    """The task's figures under a prefix, those that there are."""
    values = [(name, outcome.metrics.get(f"{prefix}/{name}")) for name in HEADLINES[experiment.task]]
    return "  ".join(f"{name} {value:.2f}" for name, value in values if value is not None)


def exact_matches(outcome: Outcome) -> list[tuple[Any, ...]]:
    """A phenomenon, the test rows that have it, and the share of these that is right to the letter, in percent.

    The last line is of all rows.
    """
    assert outcome.record is not None
    report = outcome.record.store.read_json(evaluate.REPORT_FILE)
    subsets = [*report["tags"], {"name": "all", "num_rows": report["num_rows"], "figures": report["figures"]}]
    return [(each["name"], each["num_rows"], 100 * each["figures"]["exact_match"]) for each in subsets]


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
    times: list[tuple[Any, ...]],
    chains: list[Outcome],
    outputs: list[Outcome],
    seconds: float,
) -> None:
    console = context.console
    console.say()
    console.say("Figures on test, beside trivial baselines")
    console.table(("experiment", "who", "figures"), rows)
    console.say("\nTranslation: test sentences that are right to the letter, by what they contain")
    console.table(("phenomenon", "sentences", "exact %"), exact_matches(chains[EXPERIMENTS.index("demo_translate")]))
    for chain, output in zip(chains, outputs, strict=True):
        console.say(f"\n{chain.model_uri} ({chain.model_alias}): output in {output.artifacts['output']}")
        for note in output.notes:
            console.say(note)
    console.say("\nTime")
    console.table(
        ("experiment", "stages", "start-up s", "work s"), [*times, ("all", "", sum(row[2] for row in times), seconds)]
    )
    console.say("\nLook at runs, curves, samples and models in MLflow:")
    console.say(f"  .venv/bin/mlflow ui --host 127.0.0.1 --backend-store-uri {context.options.tracking_uri}")
    console.say("  and open http://127.0.0.1:5000/#/experiments?workflowType=machine_learning")
