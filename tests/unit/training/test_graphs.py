from collections.abc import Callable

import pytest
import torch

from rnnlm.training import graphs
from rnnlm.training.loop import training_steps
from rnnlm.training.state import TrainingRun

MakeRun = Callable[..., TrainingRun]


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
