from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from rnnlm.data.ragged import Ragged
from rnnlm.errors import DataError
from rnnlm.models.config import LanguageModelConfig, Seq2SeqConfig
from rnnlm.nn.softmax import linear_log_softmax
from rnnlm.optim.config import OptimConfig
from rnnlm.training.build import build_run, first_state, seeded_model, start_at_frequencies
from rnnlm.training.collective import Alone
from rnnlm.training.config import ComputeConfig, TrainConfig
from rnnlm.training.state import TrainingRun, TrainingState

MakeRun = Callable[..., TrainingRun]
TINY = LanguageModelConfig(embedding_size=4, hidden_size=4, num_layers=1)


def test_first_weights_are_a_function_of_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    first = seeded_model(TINY, 10, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    second, other = seeded_model(TINY, 10, 3), seeded_model(TINY, 10, 4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


@pytest.mark.parametrize("cutoffs", [(), (4, 7)])
def test_without_features_a_new_model_tells_how_frequent_tokens_are(cutoffs: tuple[int, ...]) -> None:
    model = seeded_model(TINY.model_copy(update={"softmax_cutoffs": cutoffs}), 10, 0)
    start_at_frequencies(model, {"text": Ragged.from_rows([[3, 3, 3, 9], [5, 3, 1]])})

    log_p_V = linear_log_softmax(torch.zeros(1, 4), model.output_weight, model.output_bias, model.clusters).log_softmax(
        1
    )
    counts = torch.tensor([1, 2, 1, 5, 1, 2, 1, 1, 1, 2.0])
    assert torch.allclose(log_p_V[0].exp(), counts / counts.sum())
    assert abs(float(model.output_bias.detach().mean())) < 1e-6


def test_the_end_of_a_target_counts_as_a_token() -> None:
    model = seeded_model(Seq2SeqConfig(embedding_size=4, hidden_size=4), 6, 0)
    rows = Ragged.from_rows([[3, 3, 4], [3]])
    start_at_frequencies(model, {"source": Ragged.from_rows([[5], [5]]), "target": rows})

    counts = torch.tensor([1, 3, 1, 4, 2, 1.0])
    assert torch.allclose(model.output_bias.softmax(0), counts / counts.sum())


def test_worker_0_gives_its_weights_to_all(make_run: MakeRun) -> None:
    class Receiving(Alone):
        rank, world_size = 1, 2

        def broadcast(self, tensors: Sequence[Tensor]) -> None:
            for tensor in tensors:
                tensor.fill_(0.25)

    run = make_run(collective=Receiving(), optim={"ema_decay": 0.5})
    assert all(bool((weight == 0.25).all()) for weight in run.task.model.parameters())
    assert run.average is not None
    assert all(bool((average == 0.25).all()) for average in run.average.tensors().values())


def test_a_corpus_that_is_too_small_is_a_data_error(make_run: MakeRun) -> None:
    with pytest.raises(DataError):
        make_run(lanes=10_000)


@pytest.mark.parametrize("rows", [[], [[1]]])
def test_a_valid_split_without_text_is_none(rows: list[list[int]]) -> None:
    run = build_run(
        seeded_model(TINY, 10, 0),
        train_tokens={"text": Ragged.from_rows([np.arange(100) % 10])},
        valid_tokens={"text": Ragged.from_rows(rows)},
        train=TrainConfig(lanes=2, bptt_length=5),
        optim=OptimConfig(),
        compute=ComputeConfig(),
        seed=0,
    )
    assert run.task.num_valid_tokens == 0


def test_a_wall_time_leaves_the_stride_open() -> None:
    assert first_state(TrainConfig(max_steps=5_000), 7).stride == 5
    timed = first_state(TrainConfig(max_steps=5_000, max_minutes=1.0), 7)
    assert timed.stride is None
    assert TrainingState.from_plain(timed.plain()) == timed
