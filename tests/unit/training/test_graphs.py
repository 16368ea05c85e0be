from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rnnlm.nn.dropout import KeyTable, MaskContext
from rnnlm.nn.state import State
from rnnlm.training import graphs
from rnnlm.training.graphs import Compute, StepGraphs
from rnnlm.training.loop import training_steps
from rnnlm.training.state import TrainingRun

MakeRun = Callable[..., TrainingRun]


class Replayed:
    """Stands for a CUDA graph on a CPU: it reads and writes the memory that it was recorded with, and nothing else."""

    def __init__(self, compute: Compute, inputs: dict[str, torch.Tensor], before: State, gradients: list[Any]) -> None:
        self.compute, self.inputs, self.before, self.gradients = compute, inputs, before, gradients
        self.keys = KeyTable(torch.device("cpu"))
        self.parameters: list[torch.nn.Parameter] = []
        self.nats, self.after = torch.zeros((), dtype=torch.float64), before.map(torch.clone)
        self.runs = 0

    def replay(self) -> None:
        computed = self.compute(self.inputs, self.before, MaskContext(-1, -1, self.inputs["rows"], self.keys))
        found = torch.autograd.grad(computed.objective, self.parameters)
        torch._foreach_copy_(self.gradients, list(found))
        self.nats.copy_(computed.nats)
        for name, tensor in self.after.items():
            tensor.copy_(computed.after[name].detach())
        self.runs += 1


@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_recorded_steps_are_those_that_would_have_been(
    make_run: MakeRun, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Replayed] = []

    def record(
        self: StepGraphs, compute: Compute, arrays: Mapping[str, np.ndarray], state: State, step: int
    ) -> graphs._Graph:
        self._gradients = self._gradients or [torch.zeros_like(each) for each in self._parameters]
        inputs = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        fake = Replayed(compute, inputs, state.map(torch.clone), self._gradients)
        fake.parameters = self._parameters
        compute(inputs, fake.before, MaskContext(0, step, inputs["rows"], fake.keys))
        made.append(fake)
        return graphs._Graph(fake, inputs, fake.before, fake.keys, fake.nats, fake.after)  # type: ignore[arg-type]

    monkeypatch.setattr(StepGraphs, "_record", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    plain = make_run(kind, max_steps=40)
    list(training_steps(plain))
    run = make_run(kind, max_steps=40)
    with_graphs = StepGraphs(run.task.model, run.arithmetic, 11)
    run.task._settings = replace(run.task._settings, graphs=with_graphs)  # type: ignore[attr-defined]
    list(training_steps(run))
    assert made
    assert (
        sum(fake.runs for fake in made) + sum(min(seen, graphs.SEEN_BEFORE) for seen in with_graphs._seen.values())
        == 40
    )
    assert run.history.columns()["loss_nats"] == pytest.approx(plain.history.columns()["loss_nats"], rel=1e-6)
    for left, right in zip(run.task.model.parameters(), plain.task.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_graphs_change_no_figure(make_run: MakeRun, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(most_graphs: int) -> tuple[list[float], list[torch.Tensor], int]:
        monkeypatch.setattr(graphs, "MOST_GRAPHS", most_graphs)
        run = make_run(kind, device="cuda", max_steps=40, optim={"ema_decay": 0.9})
        list(training_steps(run))
        settings = run.task._settings
        recorded = len(settings.graphs._graphs)
        return run.history.columns()["loss_nats"], [each.detach() for each in run.task.model.parameters()], recorded

    wanted, weights, none = trained(0)
    got, same_weights, some = trained(64)
    assert (none, some > 0) == (0, True)
    assert got == pytest.approx(wanted, rel=1e-5)
    for left, right in zip(same_weights, weights, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
