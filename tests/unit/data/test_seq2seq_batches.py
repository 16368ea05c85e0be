from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnlm.data.ingest import ingest
from rnnlm.data.ragged import Ragged
from rnnlm.data.seq2seq_batches import PairBatches, evaluation_batches, few_rows
from rnnlm.data.shards import read_tokens
from rnnlm.data.sources import check_sources
from rnnlm.data.tokenizing import tokenize_corpus
from rnnlm.errors import DataError
from rnnlm.experiment import load
from rnnlm.storage import Store
from rnnlm.text.special import EOS_ID

EXPERIMENTS = Path(__file__).parents[3] / "pipelines" / "experiments"

CASES = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=40),
        "batch_tokens": st.integers(1, 90),
        "seed": st.integers(0, 3),
        "world_size": st.integers(1, 4),
    }
)


def numbered(lengths):
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return Ragged(np.arange(10, 10 + offsets[-1], dtype=np.int32), offsets)


def corpus(lengths):
    return numbered([pair[0] for pair in lengths]), numbered([pair[1] for pair in lengths])


def multi30k_like(count=29_000):
    """Lengths of image captions in two languages: about 12 words, log-normal, correlated."""
    generator = np.random.default_rng(5)
    first, noise = generator.normal(size=(2, count))
    second = 0.75 * first + 0.66 * noise
    lengths = [np.clip(np.rint(np.exp(2.45 + 0.33 * draw)), 3, 45).astype(int) for draw in (first, second)]
    return numbered(lengths[0]), numbered(lengths[1])


def positions(batch):
    return batch.source_BS.size + batch.target_in_BT.size


def check_rows(batch, source, target):
    """Each row of a batch is the pair that it says it is."""
    assert batch.num_tokens == (batch.target_out_BT > 0).sum()
    assert batch.source_lengths_B.tolist() == (batch.source_BS > 0).sum(1).tolist()
    for array in (batch.source_BS, batch.source_lengths_B, batch.target_in_BT, batch.target_out_BT):
        assert array.dtype == np.int64
        assert len(array) == len(batch.rows)
    for place, row in enumerate(batch.rows.tolist()):
        words = target[row].tolist()
        assert [token for token in batch.source_BS[place].tolist() if token] == [*source[row].tolist(), EOS_ID]
        assert [token for token in batch.target_in_BT[place].tolist() if token] == ([EOS_ID, *words])
        assert [token for token in batch.target_out_BT[place].tolist() if token] == [*words, EOS_ID]
        assert batch.source_BS[place, -1] == 0 or len(source[row]) + 1 == batch.source_BS.shape[1]


@settings(max_examples=50, deadline=None)
@given(CASES)
def test_each_pair_comes_once_an_epoch_within_the_budget(case):
    source, target = corpus(case["lengths"])
    batches = PairBatches(source, target, batch_tokens=case["batch_tokens"], seed=case["seed"])
    steps = batches.steps_per_epoch(0)
    for epoch in range(3):
        assert batches.steps_per_epoch(epoch) == steps
        drawn = [batches.batch(epoch * steps + step) for step in range(steps)]
        assert sorted(row for batch in drawn for row in batch.rows.tolist()) == list(range(len(source)))
        real = source.num_tokens + target.num_tokens + 2 * len(source)
        assert batches.padding_share(epoch) == pytest.approx(1 - real / sum(map(positions, drawn)))
        for batch in drawn:
            assert positions(batch) <= case["batch_tokens"] or len(batch.rows) == 1
            assert batch.num_tokens == batch.global_tokens
            check_rows(batch, source, target)
    assert positions(batches.batch(0)) == max(positions(batches.batch(step)) for step in range(steps))


@settings(max_examples=50, deadline=None)
@given(CASES)
def test_shares_of_workers_make_up_the_batch(case):
    source, target = corpus(case["lengths"])
    settings = {"batch_tokens": case["batch_tokens"], "seed": case["seed"]}
    world_size = case["world_size"]
    whole = PairBatches(source, target, **settings)
    workers = [PairBatches(source, target, **settings, rank=rank, world_size=world_size) for rank in range(world_size)]
    padded = 0
    for step in range(2 * whole.steps_per_epoch(0)):
        batch = whole.batch(step)
        parts = [worker.batch(step) for worker in workers]
        assert [row for part in parts for row in part.rows.tolist()] == batch.rows.tolist()
        assert {part.global_tokens for part in parts} == {batch.global_tokens}
        assert sum(part.num_tokens for part in parts) == batch.global_tokens
        for part in parts:
            check_rows(part, source, target)
            longest = max((len(target[row]) + 1 for row in part.rows), default=1)
            assert part.target_in_BT.shape == part.target_out_BT.shape == (len(part.rows), longest)
            padded += positions(part)
    real = 2 * (source.num_tokens + target.num_tokens + 2 * len(source))
    assert workers[0].padding_share(0) == pytest.approx(1 - real / padded)


@settings(max_examples=50, deadline=None)
@given(CASES, st.randoms(use_true_random=False))
def test_batch_is_a_function_of_the_step(case, random):
    source, target = corpus(case["lengths"])
    settings = {"batch_tokens": case["batch_tokens"], "seed": case["seed"]}
    ordered = PairBatches(source, target, **settings)
    jumping = PairBatches(source, target, **settings)
    steps = list(range(3 * ordered.steps_per_epoch(0)))
    expected = [ordered.batch(step).rows.tolist() for step in steps]
    random.shuffle(steps)
    for step in steps:
        batch = jumping.batch(step)
        assert (batch.step, batch.rows.tolist()) == (step, expected[step])


def test_empty_share_has_no_rows_but_shapes():
    source, target = corpus([(3, 3)])
    batches = [PairBatches(source, target, batch_tokens=50, seed=0, rank=rank, world_size=2) for rank in range(2)]
    sizes = [len(worker.batch(0).rows) for worker in batches]
    assert sorted(sizes) == [0, 1]
    empty = batches[sizes.index(0)].batch(0)
    assert empty.source_BS.shape == empty.target_in_BT.shape == empty.target_out_BT.shape == (0, 1)
    assert (empty.num_tokens, empty.global_tokens) == (0, 4)


def test_padding_is_small_on_realistic_lengths():
    source, target = multi30k_like()
    for world_size in (1, 2):
        batches = PairBatches(source, target, batch_tokens=4096, seed=0, world_size=world_size)
        assert batches.padding_share(0) < 0.05
    total = source.num_tokens + target.num_tokens + 2 * len(source)
    assert batches.steps_per_epoch(0) < 1.1 * total / 4096


def test_workers_get_about_as_many_tokens():
    source, target = multi30k_like(5_000)
    workers = [PairBatches(source, target, batch_tokens=4096, seed=0, rank=rank, world_size=2) for rank in range(2)]
    costs = np.array([[positions(worker.batch(step)) for worker in workers] for step in range(30)])
    assert (abs(costs[:, 0] - costs[:, 1]) <= costs.max(1) // 10 + 40).all()


def test_batches_and_equal_rows_are_shuffled_by_epoch_and_seed():
    source, target = corpus([(4, 4)] * 60 + [(8, 8)] * 60)
    batches = PairBatches(source, target, batch_tokens=100, seed=1)
    steps = batches.steps_per_epoch(0)
    first, second = ([batches.batch(epoch * steps + step).rows.tolist() for step in range(steps)] for epoch in (0, 1))
    other = PairBatches(source, target, batch_tokens=100, seed=2)
    assert first != second
    assert {frozenset(rows) for rows in first} != {frozenset(rows) for rows in second}
    assert [other.batch(step).rows.tolist() for step in range(steps)] != first


def test_later_epochs_do_not_start_with_the_largest_batch():
    source, target = multi30k_like(2_000)
    batches = PairBatches(source, target, batch_tokens=1000, seed=0)
    steps = batches.steps_per_epoch(0)
    firsts = [positions(batches.batch(epoch * steps)) for epoch in range(6)]
    assert len(set(firsts)) > 1


@pytest.mark.parametrize(
    ("name", "files", "most"),
    [
        ("multi30k_de_en", ["multi30k/tok/train.lc.norm.tok.de", "multi30k/tok/train.lc.norm.tok.en"], 0.05),
        ("tatoeba_de_en", ["tatoeba-de-en/train.de", "tatoeba-de-en/train.en"], 0.05),
        ("samsum", ["samsum/train.jsonl"], 0.10),
    ],
)
def test_padding_of_a_benchmark_set_as_its_experiment_trains_on_it(tmp_path, benchmark_data, name, files, most):
    keys = ["data.train"] if len(files) == 1 else ["data.train.source", "data.train.target"]
    overrides = [f"{key}={file}" for key, file in zip(keys, files, strict=True)]
    chosen = load(str(EXPERIMENTS / f"{name}.toml"), overrides)
    corpus, tokens = Store(str(tmp_path / "corpus")), Store(str(tmp_path / "tokens"))
    ingest(check_sources(chosen.data, is_text=False, base=benchmark_data), chosen.data, seed=0, store=corpus)
    tokenize_corpus(corpus, tokens, data=chosen.data, tokenizer=chosen.tokenizer, seed=0)
    columns = read_tokens(tokens, "train")
    batches = PairBatches(columns["source"], columns["target"], batch_tokens=chosen.train.batch_tokens, seed=0)
    assert batches.padding_share() < most


@settings(max_examples=50, deadline=None)
@given(CASES)
def test_evaluation_takes_each_pair_once_longest_first(case):
    source, target = corpus(case["lengths"])
    batches = list(evaluation_batches(source, target, case["batch_tokens"]))
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == list(range(len(source)))
    assert [batch.step for batch in batches] == list(range(len(batches)))
    lengths = [batch.source_BS.shape[1] + batch.target_in_BT.shape[1] for batch in batches]
    assert lengths == sorted(lengths, reverse=True)
    for batch in batches:
        assert positions(batch) <= case["batch_tokens"] or len(batch.rows) == 1
        check_rows(batch, source, target)


@pytest.mark.parametrize("make", [lambda *pair: PairBatches(*pair, batch_tokens=9, seed=0), None])
def test_unusable_corpora_are_told(make):
    make = make or (lambda *pair: list(evaluation_batches(*pair, 9)))
    with pytest.raises(DataError, match="no pairs"):
        make(*corpus([]))
    with pytest.raises(DataError, match="2 sources, but 1 targets"):
        make(numbered([1, 1]), numbered([1]))


def test_impossible_rank_is_refused():
    source, target = corpus([(1, 1)])
    with pytest.raises(ValueError, match="rank 1 of 1"):
        PairBatches(source, target, batch_tokens=9, seed=0, rank=1)


@given(st.integers(0, 5_000))
def test_few_rows_are_nearly_as_many_as_fit(most: int) -> None:
    rows = few_rows(most)
    assert max(1, most - min(15, most // 4)) <= rows <= max(1, most)
    assert rows % 16 == 0 or most < 64


def test_batches_have_few_numbers_of_rows() -> None:
    lengths = np.random.default_rng(0).integers(3, 30, 20_000)
    rows = Ragged.from_rows([np.zeros(length, np.int32) for length in lengths])
    batches = PairBatches(rows, rows, batch_tokens=3_000, seed=0)
    sizes = {len(batches.batch(step).rows) for step in range(batches.steps_per_epoch())}
    assert len({size for size in sizes if size % 8}) <= 1  # what is left at the end
