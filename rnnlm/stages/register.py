"""Package the trained model and register it; the gate decides whether it becomes champion."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnlm.batch.lease import LEASE_FILE, Lease, LeaseHeldError, lease
from rnnlm.config import digest
from rnnlm.errors import UsageError
from rnnlm.stages import evaluate
from rnnlm.stages.context import Context, Outcome, Work
from rnnlm.storage import Store

if TYPE_CHECKING:
    from rnnlm.artifacts import Record
    from rnnlm.assemble import Lineage
    from rnnlm.decoding.config import PrecisionCheck
    from rnnlm.decoding.generator import Generator
    from rnnlm.evaluation.gate import Decision
    from rnnlm.evaluation.report import Report
    from rnnlm.integrations.mlflow_registry import Version

PACKAGE_FOLDER = "package"
DECISION_FILE = "decision.json"
WAIT_S = 1.0
"""Seconds after which one that waits for its turn looks again."""


def run(context: Context) -> Outcome:
    """Do the stage."""
    from rnnlm import assemble

    experiment = context.experiment
    # A version whose figures still wait to be sent would stand there without them.
    context.tracking.flush()
    train, evaluated = _measured(context)
    origin = assemble.lineage(context.store, train)
    inputs = {"checkpoint": evaluated.inputs["checkpoint"], "report": evaluated.digest, "train": train.digest}

    def work(folder: Store) -> Work:
        with context.starting_up():
            generator = assemble.generator_of(origin, experiment.decode)
        with context.mlflow_run(folder, "register", inputs) as run_id:
            return _publish(context, folder, run_id, origin, generator, evaluated)

    def log_again(record: "Record") -> "Record":
        done = work(record.store)
        return replace(record, run_id=done.run_id, outputs={**done.outputs, "metrics": {}, "model_uri": done.model_uri})

    outcome = context.run_stage("register", experiment.settings("register"), inputs, work, log_again)
    assert outcome.record is not None
    outcome.model_alias = str(outcome.record.outputs["alias"])
    model = f"models:/{experiment.model_name}@{outcome.model_alias}"
    outcome.next_command = f"python -m pipelines.generate --model {model} --input FILES --output FOLDER"
    return outcome


def _measured(context: Context) -> "tuple[Record, Record]":
    """A training and the evaluation of it; `--from` may name either.

    Raises:
        UsageError: there is none.
    """
    from rnnlm import artifacts, assemble

    evaluated = context.named("evaluate")
    if evaluated is not None:
        folder = artifacts.folder(context.store, context.experiment.name, "train", evaluated.outputs["train"])
        train = artifacts.read_record(folder)
        if train is None:
            raise UsageError(f"{evaluated.uri}: the training that it measured is gone from {folder.uri}")
        return train, evaluated
    train = context.newest("train")
    inputs = evaluate.inputs_of(assemble.lineage(context.store, train))
    return train, context.newest("evaluate", inputs)


def _publish(
    context: Context, folder: Store, run_id: str, origin: "Lineage", generator: "Generator", evaluated: "Record"
) -> Work:
    """Write the package, judge it, and make it a model version."""
    from rnnlm import assemble
    from rnnlm.package import package_digest, save_package

    experiment = context.experiment
    checks = assemble.check_precisions(generator, origin, experiment.evaluate, experiment.seed)
    generator.precision_checks = tuple(checks)
    local = folder.local(PACKAGE_FOLDER) or _scratch() / PACKAGE_FOLDER
    save_package(local, generator)
    if folder.local() is None:
        folder.upload(local, PACKAGE_FOLDER)
    with _turn(context) as held:
        decision = _decision(context, folder, run_id, local, origin, generator)
        model = _register(context, local, run_id, decision, evaluated, held)
    outputs = {"package_digest": package_digest(local), "alias": alias(decision), "version": model.version}
    outputs["reason"] = decision.reason
    notes = [f"  {experiment.model_name} version {model.version} is {alias(decision)}: {decision.reason}"]
    notes += [f"  {_shown(check)}" for check in checks]
    uri = f"models:/{experiment.model_name}/{model.version}"
    return Work({"package": PACKAGE_FOLDER}, outputs, run_id, model_uri=uri, notes=notes)


def _shown(check: "PrecisionCheck") -> str:
    """A line about a precision."""
    verdict = "allowed" if check.allowed else "not allowed"
    figures = f"{check.metric} {check.value:.6g}, in fp32 {check.fp32_value:.6g}, on {check.rows} rows"
    return f"decoding in {check.precision} is {verdict}: {figures}"


def lease_name(model_name: str) -> str:
    """The lease of who judges and registers a version of a model, in the store; a digest, as names may be long."""
    return f"models/{digest(model_name)[:16]}.{LEASE_FILE}"


@contextlib.contextmanager
def _turn(context: Context) -> Iterator[Lease]:
    """Wait for the others that register versions of this model: a champion that they make is the one to beat."""
    name = context.experiment.model_name
    with contextlib.ExitStack() as stack:
        held, waiting = None, False
        while held is None:
            context.interrupts.check()
            try:
                held = stack.enter_context(lease(context.store, lease_name(name)))
            except LeaseHeldError as error:
                if not waiting:
                    context.console.say(f"  another version of {name} is being registered: {error}")
                waiting = True
                time.sleep(WAIT_S)
        yield held


def _decision(
    context: Context, folder: Store, run_id: str, package: Path, origin: "Lineage", generator: "Generator"
) -> "Decision":
    """What was decided before this stage was killed, or else, or if another champion came meanwhile, a decision now."""
    from rnnlm.evaluation.gate import Decision
    from rnnlm.integrations import mlflow_registry
    from rnnlm.package import package_digest

    registry, name = mlflow_registry.Registry(context.tracking), context.experiment.model_name
    champion = registry.champion(name)
    version = None if champion is None else champion.version
    noted = folder.read_json(DECISION_FILE) if folder.exists(DECISION_FILE) else {}
    if noted.get("run_id") == run_id:  # a run at another tracking server has another champion
        # Once our version is champion it would be compared with itself.
        is_ours = champion is not None and champion == registry.made_by(name, run_id, package_digest(package))
        if is_ours or version == noted.get("champion"):
            return Decision(**noted["decision"])
    decision = decide(context, origin, generator, champion)
    folder.write_json(DECISION_FILE, {"run_id": run_id, "champion": version, "decision": asdict(decision)})
    return decision


def alias(decision: "Decision") -> str:
    """The alias that a version gets."""
    return "champion" if decision.promote else "challenger"


def decide(context: Context, origin: "Lineage", generator: "Generator", champion: "Version | None") -> "Decision":
    """Score the challenger on the gate split, beside the champion, or beside trivial baselines where there is none."""
    from rnnlm import assemble
    from rnnlm.evaluation import gate
    from rnnlm.integrations import mlflow_registry

    experiment = context.experiment
    split = next((name for name in ("gate", "valid") if origin.has_split(name)), None)
    if split is None:
        reason = "Not promoted: the corpus has neither a gate split nor a valid one to judge it on."
        return gate.Decision(False, gate.PRIMARY_METRICS[experiment.task][0], reason)
    settings = assemble.gate_settings(experiment.evaluate, experiment.register_.max_rows)

    def score(model: "Generator", baselines: bool) -> "Report":
        return assemble.evaluate_split(model, origin, split, settings, baselines=baselines)

    context.console.say(f"  scoring on {split}")
    challenger = score(generator, champion is None)
    if champion is None:
        return gate.decide(experiment.task, challenger.figures, None, challenger.baselines)
    best = mlflow_registry.Registry(context.tracking).load(champion)
    same = generator.tokenizer.digest == best.tokenizer.digest
    return gate.decide(experiment.task, challenger.figures, score(best, False).figures, [], same_tokenizer=same)


def _register(
    context: Context, package: Path, run_id: str, decision: "Decision", evaluated: "Record", held: Lease
) -> "Version":
    """Make the version, and give it its alias while the decision is still about the champion that there is."""
    from rnnlm.integrations import mlflow_registry

    registry, name = mlflow_registry.Registry(context.tracking), context.experiment.model_name
    tags = {"rnnlm.reason": decision.reason, "rnnlm.evaluate_run": evaluated.run_id or ""}
    tags |= {key: f"{value:.6g}" for key, value in evaluated.outputs["metrics"].items() if key.startswith("test/")}
    version = registry.register(package, name, run_id=run_id, tags=tags, description=decision.reason)
    held.check()
    registry.set_alias(name, alias(decision), version.version)
    return version


def _scratch() -> Any:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="rnnlm-package-"))
