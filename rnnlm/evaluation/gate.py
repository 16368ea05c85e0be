"""The promotion gate: whether a new model version becomes the champion, and a sentence that says why."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rnnlm.errors import UsageError
from rnnlm.evaluation.baselines import Baseline

Figures = Mapping[str, float | None]

PRIMARY_METRICS = {
    "text": ("bits_per_byte", "perplexity"),
    "translate": ("bleu",),
    "summarize": ("rougeL",),
}
"""The figure that decides, by task; the next one where the first is not defined on both sides."""

LOWER_IS_BETTER = frozenset({"bits_per_byte", "perplexity"})


@dataclass(frozen=True)
class Decision:
    """Whether to promote, by which figure, and why in a full sentence."""

    promote: bool
    metric: str
    reason: str


def primary_metric(task: str, *sides: Figures) -> str:
    """The task's first primary metric that every side has.

    Raises:
        UsageError: no such metric, or an unknown task.
    """
    if task not in PRIMARY_METRICS:
        raise UsageError(f"task should be one of {', '.join(PRIMARY_METRICS)} (got {task!r})")
    for metric in PRIMARY_METRICS[task]:
        if all(side.get(metric) is not None for side in sides):
            return metric
    raise UsageError(f"the figures of task {task!r} lack {' and '.join(PRIMARY_METRICS[task])}")


def is_better(metric: str, value: float, than: float) -> bool:
    """Whether a value is strictly better; NaN is better than nothing, and anything is better than NaN."""
    if math.isnan(value) or math.isnan(than):
        return math.isnan(than) and not math.isnan(value)
    return value < than if metric in LOWER_IS_BETTER else value > than


def decide(
    task: str,
    challenger: Figures,
    champion: Figures | None,
    baselines: Sequence[Baseline],
    *,
    same_tokenizer: bool = True,
) -> Decision:
    """Whether the challenger becomes champion.

    The first version must be strictly better than every trivial baseline; a later one strictly better than today's
    champion, both scored on the same rows, in the task's primary metric.

    Args:
        task: `text`, `translate` or `summarize`.
        challenger: the new version's figures by metric (`bleu`, `rougeL`, `bits_per_byte`, `perplexity`).
        champion: the champion's figures on the same rows; None where there is none yet.
        baselines: what was measured on the same rows; only those of role `trivial` count.
        same_tokenizer: whether both models cut text alike, without which their perplexities cannot be compared.

    Raises:
        UsageError: the challenger lacks the primary metric.
    """
    if champion is None:
        return _first(task, challenger, baselines)
    metric = primary_metric(task, challenger, champion)
    if metric == "perplexity" and not same_tokenizer:
        reason = "Not promoted: the perplexities of models with different tokenizers cannot be compared."
        return Decision(False, metric, reason)
    new, old = _value(challenger, metric), _value(champion, metric)
    promote = is_better(metric, new, old)
    head, verb = ("Promoted", "beats") if promote else ("Not promoted", "does not beat")
    direction = "lower" if metric in LOWER_IS_BETTER else "higher"
    return Decision(
        promote, metric, f"{head}: {metric} {_shown(new)} {verb} the champion's {_shown(old)} ({direction} is better)."
    )


def _first(task: str, challenger: Figures, baselines: Sequence[Baseline]) -> Decision:
    trivial = [baseline for baseline in baselines if baseline.role == "trivial"]
    metric = primary_metric(task, challenger, *(baseline.figures for baseline in trivial))
    if not trivial:
        reason = "Not promoted: this would be the first champion, and no trivial baseline was measured to compare with."
        return Decision(False, metric, reason)
    new = _value(challenger, metric)
    unbeaten = [one for one in trivial if not is_better(metric, new, _value(one.figures, metric))]
    promote = not unbeaten
    listed = ", ".join(f"{one.name} {_shown(_value(one.figures, metric))}" for one in unbeaten or trivial)
    if promote:
        reason = f"Promoted as the first version: {metric} {_shown(new)} beats every trivial baseline ({listed})."
    else:
        reason = f"Not promoted: {metric} {_shown(new)} does not beat every trivial baseline (unbeaten: {listed})."
    return Decision(promote, metric, reason)


def _value(figures: Figures, metric: str) -> float:
    value = figures[metric]
    assert value is not None
    return value


def _shown(value: float) -> str:
    """Enough digits that two values which differ look different in all but freak cases."""
    return f"{value:.6g}"
