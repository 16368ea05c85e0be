"""The hash is judged as a generator of random bits would be: shares, and correlations in every direction."""

import itertools

import pytest
import torch

from rnnlm.nn.dropout import (
    KeyTable,
    MaskContext,
    _keys,
    _uniform_bits,
    dropout,
    locked_dropout,
    locked_mask,
    matrix_mask,
    type_mask,
)


def _context(rows: int = 256, seed: int = 1, step: int = 5) -> MaskContext:
    return MaskContext(seed, step, torch.arange(rows))


def _correlation(left: torch.Tensor, right: torch.Tensor) -> float:
    left, right = left.flatten().float(), right.flatten().float()
    return float(torch.corrcoef(torch.stack([left, right]))[0, 1])


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_share_and_scale(share: float) -> None:
    mask = locked_mask(512, share, _context(), 3)
    bound = 5 * (share * (1 - share) / mask.numel()) ** 0.5
    assert abs((mask == 0).float().mean() - share) < bound
    assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - share)])
    assert abs(mask.mean() - 1) < 6 * bound / (1 - share)


def test_every_bit_is_balanced_and_bits_are_independent() -> None:
    bits = _uniform_bits(torch.arange(256), 512, _keys(7, 8, 9))
    planes = torch.stack([(bits >> bit & 1).flatten().float() for bit in range(32)])
    bound = 5 / bits.numel() ** 0.5
    assert (planes.mean(1) - 0.5).abs().max() < bound / 2
    correlations = torch.corrcoef(planes) - torch.eye(32)
    assert correlations.abs().max() < bound


def test_no_correlation_between_neighbours_in_any_direction() -> None:
    share, features = 0.5, 512
    mask = locked_mask(features, share, _context(), 3)
    bound = 5 / mask.numel() ** 0.5
    for lag in (1, 2, 4, 64, 128):
        assert abs(_correlation(mask[lag:], mask[:-lag])) < bound * 1.5
        assert abs(_correlation(mask[:, lag:], mask[:, :-lag])) < bound * 1.5
    others = [
        locked_mask(features, share, _context(step=6), 3),
        locked_mask(features, share, _context(seed=2), 3),
        locked_mask(features, share, _context(), 4),
        locked_mask(features, share, MaskContext(1, 5, torch.arange(256) + (1 << 32)), 3),
    ]
    for left, right in itertools.combinations([mask, *others], 2):
        assert abs(_correlation(left, right)) < bound


def test_rows_drop_independent_numbers_of_features() -> None:
    dropped = (locked_mask(400, 0.25, _context(2000), 0) == 0).sum(1).float()
    assert abs(dropped.mean() - 100) < 1
    assert abs(dropped.var() / (400 * 0.25 * 0.75) - 1) < 0.15


def test_a_row_has_its_mask_in_any_batch() -> None:
    whole = locked_mask(32, 0.3, _context(16), 2)
    alone = locked_mask(32, 0.3, MaskContext(1, 5, torch.tensor([11, 3])), 2)
    assert torch.equal(alone, whole[[11, 3]])


def test_same_at_all_times_and_none_without_context() -> None:
    x = torch.ones(4, 7, 16)
    dropped = locked_dropout(x, 0.5, _context(4), 0)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert not torch.equal(dropped[0], dropped[1])
    assert locked_dropout(x, 0.5, None, 0) is x
    assert locked_dropout(x, 0.0, _context(4), 0) is x


def test_no_global_generator_is_used() -> None:
    before = torch.random.get_rng_state()
    locked_dropout(torch.ones(2, 3, 4), 0.5, _context(2), 0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_type_mask_depends_on_seed_step_and_site_only() -> None:
    device = torch.device("cpu")
    mask = type_mask(5000, 0.1, _context(4), 0, device)
    assert torch.equal(mask, type_mask(5000, 0.1, MaskContext(1, 5, torch.tensor([99])), 0, device))
    assert not torch.equal(mask, type_mask(5000, 0.1, _context(4, step=6), 0, device))
    assert abs((mask == 0).float().mean() - 0.1) < 0.03


def test_keys_from_a_table_give_the_same_masks() -> None:
    table = KeyTable(torch.device("cpu"))
    rows = torch.tensor([4, 1 << 33])
    weight = torch.ones(3, 5)

    def masks(context: MaskContext) -> list[torch.Tensor]:
        x = torch.ones(2, 3, 40)
        return [
            locked_dropout(x, 0.3, context, 7),
            dropout(x, 0.3, context, 8),
            type_mask(30, 0.3, context, 9, torch.device("cpu")),
            matrix_mask(weight, 0.3, context, 10),
        ]

    masks(MaskContext(0, 0, rows, table))  # asks for the places
    for seed, step in ((1, 2), (1, 3), (2, 3)):
        table.fill(seed, step)
        found = masks(MaskContext(99, 99, rows, table))
        for got, wanted in zip(found, masks(MaskContext(seed, step, rows)), strict=True):
            assert torch.equal(got, wanted)
