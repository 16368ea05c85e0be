import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnlm.data.lm_batches import LmBatches, stream_windows
from rnnlm.data.ragged import Ragged
from rnnlm.errors import DataError
from rnnlm.text.special import EOS_ID

CASES = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(0, 12), min_size=1, max_size=12),
        "lanes": st.integers(1, 7),
        "bptt_length": st.integers(1, 9),
        "seed": st.integers(0, 3),
        "epoch": st.integers(0, 3),
        "world_size": st.integers(1, 4),
        "bptt_variation": st.sampled_from([0.0, 0.5, 0.9]),
    }
)


def documents(lengths):
    """Documents of distinct tokens, numbered from 100 over the corpus, each ending in `<eos>`."""
    starts = 100 + np.cumsum([0, *lengths])
    return Ragged.from_rows([[*range(start, start + size), EOS_ID] for start, size in zip(starts, lengths)])


def epoch_batches(tokens, case, rank=0, world_size=1):
    batches = LmBatches(
        tokens,
        lanes=case["lanes"],
        bptt_length=case["bptt_length"],
        bptt_variation=case.get("bptt_variation", 0.0),
        seed=case["seed"],
        rank=rank,
        world_size=world_size,
    )
    steps = batches.steps_per_epoch(case["epoch"])
    return [batches.batch(case["epoch"] * steps + step) for step in range(steps)]


def enough(case):
    return sum(case["lengths"]) + len(case["lengths"]) >= 2 * case["lanes"]


def previous_tokens(tokens):
    """The token before each one; only `<eos>` may come before several."""
    return {
        int(token): int(before)
        for row in range(len(tokens))
        for before, token in zip([EOS_ID, *tokens[row][:-1]], tokens[row])
    }


@settings(max_examples=50, deadline=None)
@given(CASES.filter(enough))
def test_each_token_is_a_target_once_an_epoch_after_its_predecessor(case):
    tokens = documents(case["lengths"])
    batches = epoch_batches(tokens, case)
    targets = np.concatenate([batch.target_BT[batch.target_BT > 0] for batch in batches])
    assert sorted(targets.tolist()) == sorted(tokens.values.tolist())
    before = previous_tokens(tokens)
    for batch in batches:
        real = batch.target_BT > 0
        assert batch.input_BT.shape == batch.target_BT.shape
        assert batch.input_BT.dtype == batch.target_BT.dtype == np.int64
        assert ((batch.input_BT > 0) == real).all()
        assert batch.num_tokens == batch.global_tokens == real.sum() > 0
        for given_token, token in zip(batch.input_BT[real].tolist(), batch.target_BT[real].tolist()):
            assert token == EOS_ID or given_token == before[token]


@settings(max_examples=50, deadline=None)
@given(CASES.filter(enough))
def test_lanes_joined_are_the_permuted_documents(case):
    tokens = documents(case["lengths"])
    batches = epoch_batches(tokens, case)
    lanes = [
        [int(token) for batch in batches for token in batch.target_BT[lane] if token] for lane in range(case["lanes"])
    ]
    assert max(map(len, lanes)) - min(map(len, lanes)) <= 1
    stream = [token for lane in lanes for token in lane]
    ends = [place + 1 for place, token in enumerate(stream) if token == EOS_ID]
    found = sorted(stream[start:end] for start, end in zip([0, *ends], ends))
    assert found == sorted(tokens[row].tolist() for row in range(len(tokens)))
    inputs = [int(token) for lane in range(case["lanes"]) for batch in batches for token in batch.input_BT[lane]]
    assert [token for token in inputs if token] == [EOS_ID, *stream[:-1]]


@settings(max_examples=50, deadline=None)
@given(CASES.filter(enough))
def test_workers_share_the_lanes_of_one_batch(case):
    tokens = documents(case["lengths"])
    world_size = case["world_size"]
    whole = epoch_batches(tokens, case)
    shares = [epoch_batches(tokens, case, rank, world_size) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert sum(part.num_tokens for part in parts) == batch.global_tokens
        for rank, part in enumerate(parts):
            assert part.lanes.tolist() == list(range(rank, case["lanes"], world_size))
            assert part.input_BT.tolist() == batch.input_BT[rank::world_size].tolist()
            assert part.target_BT.tolist() == batch.target_BT[rank::world_size].tolist()
            assert (part.global_tokens, part.reset) == (batch.global_tokens, step == 0)


@settings(max_examples=50, deadline=None)
@given(CASES.filter(enough), st.randoms(use_true_random=False))
def test_batch_is_a_function_of_the_step(case, random):
    tokens = documents(case["lengths"])
    settings = {"lanes": case["lanes"], "bptt_length": case["bptt_length"], "seed": case["seed"]}
    ordered = LmBatches(tokens, **settings)
    jumping = LmBatches(tokens, **settings)
    steps = list(range(3 * ordered.steps_per_epoch(0)))
    expected = [ordered.batch(step) for step in steps]
    random.shuffle(steps)
    for step in steps:
        batch = jumping.batch(step)
        assert batch.step == step
        assert batch.input_BT.tolist() == expected[step].input_BT.tolist()
        assert batch.target_BT.tolist() == expected[step].target_BT.tolist()


def test_windows_have_the_full_length_but_for_the_ends():
    batches = LmBatches(documents([1000]), lanes=3, bptt_length=50, seed=7)
    widths = []
    for epoch in range(12):
        steps = batches.steps_per_epoch(epoch)
        assert steps == 7
        widths.append([batches.batch(epoch * steps + step).target_BT.shape[1] for step in range(steps)])
    assert widths[0] == [50, 50, 50, 50, 50, 50, 34]
    assert all(width[1:-1] == [50] * 5 and sum(width) == 334 for width in widths)
    assert len({width[0] for width in widths}) > 3


def test_order_of_documents_changes_with_epoch_and_seed():
    tokens = documents([5] * 40)
    orders = set()
    for seed in (1, 2):
        batches = LmBatches(tokens, lanes=1, bptt_length=240, seed=seed)
        orders |= {tuple(batches.batch(epoch).target_BT[0].tolist()) for epoch in range(3)}
    assert len(orders) == 6


def test_more_workers_than_lanes_leaves_empty_shares():
    batch = LmBatches(documents([30]), lanes=2, bptt_length=5, seed=0, rank=3, world_size=4).batch(0)
    assert batch.input_BT.shape == batch.target_BT.shape == (0, 5)
    assert (batch.num_tokens, batch.global_tokens) == (0, 10)


def test_too_little_text_is_told():
    with pytest.raises(DataError, match="the train split has 7 tokens; data for 4 lanes need at least 8"):
        LmBatches(documents([6]), lanes=4, bptt_length=5, seed=0)


def test_impossible_rank_is_refused():
    with pytest.raises(ValueError, match="rank 2 of 2"):
        LmBatches(documents([60]), lanes=4, bptt_length=5, seed=0, rank=2, world_size=2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=12), st.integers(1, 6), st.integers(1, 5), st.booleans())
def test_streams_score_each_document_from_its_start(lengths, bptt_length, max_rows, with_empty):
    rows = [*lengths[:3]]
    tokens = documents(lengths)
    if with_empty:
        tokens = Ragged.concatenate([tokens, Ragged.from_rows([[]]), documents(rows)])
    inputs = {row: [] for row in range(len(tokens))}
    targets = {row: [] for row in range(len(tokens))}
    before = None
    for window in stream_windows(tokens, bptt_length, max_rows):
        assert 1 <= len(window.rows) <= max_rows
        assert 1 <= window.input_BT.shape[1] <= bptt_length
        assert window.num_tokens == (window.target_BT > 0).sum()
        if not window.reset:
            assert before is not None
            assert window.rows.tolist() == before[: len(window.rows)]
        before = window.rows.tolist()
        for place, row in enumerate(window.rows.tolist()):
            assert window.reset == (not targets[row])
            inputs[row] += [int(token) for token in window.input_BT[place] if token]
            targets[row] += [int(token) for token in window.target_BT[place] if token]
            assert window.target_BT[place, 0] > 0
    for row in range(len(tokens)):
        assert targets[row] == tokens[row].tolist()
        assert inputs[row] == [EOS_ID, *targets[row]][: len(targets[row])]


def test_window_lengths_vary_around_the_wanted_one_and_from_epoch_to_epoch():
    tokens = documents([999] * 4)
    batches = LmBatches(tokens, lanes=4, bptt_length=20, bptt_variation=0.5, seed=1)
    steps = batches.steps_per_epoch()
    lengths = [[batches.batch(epoch * steps + step).target_BT.shape[1] for step in range(steps)] for epoch in (0, 1)]
    assert [sum(each) for each in lengths] == [1000, 1000]
    assert lengths[0] != lengths[1]
    assert all(10 <= length <= 30 for each in lengths for length in each[1:-1])
    assert len(set(lengths[0])) > 8
