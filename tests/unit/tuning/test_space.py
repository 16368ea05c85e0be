import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnlm.tuning import space
from rnnlm.tuning.config import Choice, Uniform

SPACE = {
    "optim.lr": Uniform(kind="log_uniform", low=1e-4, high=1e-1),
    "model.hidden_size": Uniform(kind="uniform", low=8, high=12, integer=True),
    "model.num_layers": Uniform(kind="log_uniform", low=1, high=4, integer=True),
    "model.input_dropout": Uniform(kind="uniform", low=0.0, high=0.5),
    "model.cell": Choice(values=("elman", "lstm")),
    "data.hub_splits": Choice(values=(("a", "b", "c"), ("d", "e", "f"))),
}


def test_a_sample_is_a_function_of_seed_and_number() -> None:
    assert space.sample(SPACE, 3, 5) == space.sample(dict(reversed(SPACE.items())), 3, 5)
    assert space.sample(SPACE, 3, 5) != space.sample(SPACE, 3, 6)
    assert space.sample(SPACE, 3, 5) != space.sample(SPACE, 4, 5)


@given(st.integers(0, 2**31 - 1), st.integers(0, 10_000))
def test_samples_lie_in_their_dimensions(seed: int, number: int) -> None:
    found = space.sample(SPACE, seed, number)

    assert 1e-4 <= found["optim.lr"] <= 1e-1
    assert found["model.hidden_size"] in range(8, 13)
    assert isinstance(found["model.hidden_size"], int)
    assert found["model.num_layers"] in range(1, 5)
    assert 0 <= found["model.input_dropout"] <= 0.5
    assert found["model.cell"] in ("elman", "lstm")


def test_log_uniform_samples_have_equal_shares_of_decades() -> None:
    dimension = {"optim.lr": SPACE["optim.lr"]}
    values = [space.sample(dimension, 0, number)["optim.lr"] for number in range(600)]

    shares = [sum(10.0**e <= value < 10.0 ** (e + 1) for value in values) / 600 for e in (-4, -3, -2)]

    assert shares == pytest.approx([1 / 3] * 3, abs=0.06)


def test_every_integer_comes_up() -> None:
    values = [space.sample(SPACE, 0, number) for number in range(200)]

    assert {settings["model.hidden_size"] for settings in values} == {8, 9, 10, 11, 12}
    assert {settings["model.num_layers"] for settings in values} == {1, 2, 3, 4}


def test_numbers_are_short_and_stay_inside() -> None:
    dimension = Uniform(kind="uniform", low=0.123456, high=0.987654)

    assert space.tidy(dimension, 0.5432109) == 0.5432
    assert space.tidy(dimension, 0.123457) == 0.1235
    assert space.tidy(dimension, 0.9876539) == 0.987654


def test_distinct_samples_leave_out_what_was_tried() -> None:
    small = {"model.cell": Choice(values=("elman", "lstm")), "model.num_layers": Choice(values=(1, 2))}

    found = space.distinct_samples(small, 0, 10)
    rest = space.distinct_samples(small, 0, 10, taken={space.key(found[0]), space.key(found[1])})

    assert len({space.key(settings) for settings in found}) == len(found) == 4
    assert sorted(map(space.key, rest)) == sorted(map(space.key, found[2:]))
    assert space.distinct_samples(small, 0, 0) == []


def test_settings_are_laid_over_a_tree_and_nothing_else_changes() -> None:
    tree = {"optim": {"lr": 1.0, "beta1": 0.9}, "seed": 3}

    assert space.lay_over(tree, {"optim.lr": 2.0, "train.lanes": 4}) == {
        "optim": {"lr": 2.0, "beta1": 0.9},
        "seed": 3,
        "train": {"lanes": 4},
    }
    assert tree == {"optim": {"lr": 1.0, "beta1": 0.9}, "seed": 3}


def test_the_key_depends_on_the_settings_alone() -> None:
    assert space.key({"a": 1, "b": 2}) == space.key({"b": 2, "a": 1})
    assert space.key({"a": 1}) != space.key({"a": 2})


@given(st.integers(0, 1000))
def test_indices_lead_back_to_the_settings(number: int) -> None:
    settings = space.sample(SPACE, 1, number)

    raw = space.to_indices(SPACE, settings)

    assert raw["model.cell"] in (0, 1)
    assert raw["data.hub_splits"] in (0, 1)
    assert space.from_indices(SPACE, raw) == settings


def test_what_optuna_proposes_is_tidied() -> None:
    assert space.from_indices(SPACE, {"optim.lr": 0.00123456789}) == {"optim.lr": 0.001235}
    assert math.isclose(space.from_indices(SPACE, {"optim.lr": 1e-1})["optim.lr"], 0.1)
