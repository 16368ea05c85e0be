"""The tour: three small generators from corpora that need no network, registered, and run over new input."""

import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rnnlm import experiment as experiments
from rnnlm.experiment import Experiment
from rnnlm.interrupts import Interrupts
from rnnlm.stages import evaluate, generate, ingest, run_all, tokenize_corpus, train
from rnnlm.stages.context import Context, Outcome

EXPERIMENTS = TEXT, TRANSLATE, SUMMARIZE = "demo_text", "demo_translate", "demo_summarize"
WITHOUT_ATTENTION = ("model.attention=none", "model.copy_source=false", "name=demo_translate_without_attention")
HEADLINES = {
    "text": ("bits_per_byte", "perplexity"),
    "translate": ("bleu", "chrf", "exact_match"),
    "summarize": ("rougeL", "rouge1", "exact_match"),
}


def first_experiment(folder: Path) -> Experiment:
    """The experiment that the command starts with."""
    return experiments.load(folder / f"{TEXT}.toml")


@dataclass
class _Tour:
    """What the stages said, by experiment, and how long they took."""

    folder: Path
    chains: dict[str, Outcome] = field(default_factory=dict)
    outputs: dict[str, Outcome] = field(default_factory=dict)
    without_attention: Outcome = field(default_factory=lambda: Outcome("evaluate"))
    times: list[tuple[Any, ...]] = field(default_factory=list)

    def load(self, name: str, overrides: Sequence[str] = ()) -> Experiment:
        return experiments.load(self.folder / f"{name}.toml", overrides)

    def chain(self, where: Context, name: str) -> None:
        """Train and register a model, and run it over new input."""
        inner = where.with_experiment(self.load(name))
        registered = self.chains[name] = self._timed(name, "run_all", partial(run_all.run, inner))
        self.outputs[name] = self._timed(name, "generate", partial(_generate, inner, registered))

    def control(self, where: Context) -> None:
        """Train the translator without attention on the data of the one with it, which are there already."""
        inner = where.with_experiment(self.load(TRANSLATE, WITHOUT_ATTENTION))
        name = inner.experiment.name
        self._timed(name, "train", partial(_train, inner))
        self.without_attention = self._timed(name, "evaluate", partial(evaluate.run, inner))

    def _timed(self, name: str, what: str, work: Callable[[], Outcome]) -> Outcome:
        started = time.perf_counter()
        outcome = work()
        total = time.perf_counter() - started
        self.times.append((name, what, outcome.startup_s, total - outcome.startup_s))
        return outcome


def run(context: Context, folder: Path) -> Outcome:
    """Do everything.

    Args:
        context: of any experiment.
        folder: with the experiment files.
    """
    started = time.perf_counter()
    tour = _Tour(folder)

    def translation(where: Context) -> None:
        tour.chain(where, TRANSLATE)
        tour.control(where)

    def text_and_summaries(where: Context) -> None:
        tour.chain(where, TEXT)
        tour.chain(where, SUMMARIZE)

    _at_once(context, translation, text_and_summaries)
    _show(context, tour, time.perf_counter() - started)
    return Outcome("demo", artifacts={f"output_{name}": tour.outputs[name].artifacts["output"] for name in EXPERIMENTS})


def _at_once(context: Context, here: Callable[[Context], None], aside: Callable[[Context], None]) -> None:
    """Do two things at the same time with half of the cores each; where there is no room for that, one after the other.

    Steps as small as the tour's gain little from more cores, so two trainings side by side take less time. When what is done
    here is left by an error or a signal, the other is asked to save and stop.
    """
    options, session = context.options, context.ray
    cores = session.resources.num_cpus if session.started_here and not session.resources.num_gpus else 1
    if cores < 2 or options.workers is not None or options.cpus_per_worker is not None:
        aside(context)
        here(context)
        return
    # Modules of Ray that import each other cannot be imported first by two threads at once.
    from rnnlm.integrations import ray_train, ray_tune  # noqa: F401

    half = replace(options, workers=1, cpus_per_worker=cores // 2)
    other = context.beside(context.experiment, half, context.console, Interrupts())
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(aside, other)
        try:
            here(context.beside(context.experiment, half, context.console, context.interrupts))
            done.result()
        except BaseException:
            other.interrupts.requested = signal.SIGINT
            raise


def _train(control: Context) -> Outcome:
    before = [stage.run(control) for stage in (ingest, tokenize_corpus)]
    outcome = train.run(control)
    outcome.startup_s += sum(each.startup_s for each in before)
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


def _show(context: Context, tour: _Tour, seconds: float) -> None:
    console = context.console
    rows = {name: figures(tour.load(name), tour.chains[name]) for name in EXPERIMENTS}
    control = headline(tour.load(TRANSLATE), tour.without_attention, "test")
    rows[TRANSLATE].append((TRANSLATE, "without attention", control))
    console.say()
    console.say("Figures on test, beside trivial baselines")
    console.table(("experiment", "who", "figures"), [row for group in rows.values() for row in group])
    console.say("\nTranslation: test sentences that are right to the letter, by what they contain")
    console.table(("phenomenon", "sentences", "exact %"), exact_matches(tour.chains[TRANSLATE]))
    for name in EXPERIMENTS:
        chain, output = tour.chains[name], tour.outputs[name]
        console.say(f"\n{chain.model_uri} ({chain.model_alias}): output in {output.artifacts['output']}")
        for note in output.notes:
            console.say(note)
    console.say("\nTime")
    console.table(("experiment", "stages", "start-up s", "work s"), tour.times)
    console.say(f"  {seconds:.0f} s in all; what ran side by side shared the cores")
    console.say("\nLook at runs, curves, samples and models in MLflow:")
    console.say(f"  .venv/bin/mlflow ui --host 127.0.0.1 --backend-store-uri {context.options.tracking_uri}")
    console.say("  and open http://127.0.0.1:5000/#/experiments?workflowType=machine_learning")
