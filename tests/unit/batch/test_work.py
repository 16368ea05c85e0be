from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from rnnlm.batch.config import BatchConfig
from rnnlm.batch.inputs import InputRow
from rnnlm.batch.work import generate_rows
from rnnlm.decoding.config import DecodeConfig


@dataclass
class Made:
    text: str
    score: float | None
    truncated: bool = False


class Words:
    """A tokenizer: one token a word."""

    def encode(self, texts: Sequence[str]) -> list[list[str]]:
        return [text.split() for text in texts]


class Shouter:
    """A generator that shouts, and fails on a batch that holds poison."""

    def __init__(self, task: str = "translate") -> None:
        self.task = task
        self.tokenizer = Words()
        self.calls = 0

    def generate(self, texts: Sequence[str], decode: DecodeConfig, keys: Sequence[str]) -> list[Made]:
        self.calls += 1
        if "poison" in texts:
            raise RuntimeError("bad row")
        assert len(keys) == len(texts)
        return [Made(text.upper(), -len(text) / 10, truncated="endless" in text) for text in texts]


def run(
    rows: Sequence[InputRow], limits: BatchConfig | None = None, generator: Any = None
) -> list[tuple[str, str, str | None]]:
    made = generate_rows(generator or Shouter(), rows, DecodeConfig(), limits or BatchConfig())
    assert [row.row_id for row in made] == [row.row_id for row in rows]
    return [(row.output, row.status, row.reason) for row in made]


def test_as_many_rows_out_as_in_whatever_they_hold() -> None:
    rows = [InputRow("1", "one"), InputRow("2", "  "), InputRow("3", None, "not UTF-8"), InputRow("4", None)]
    assert run(rows) == [
        ("ONE", "ok", None),
        ("", "ok", "blank input"),
        ("", "rejected", "not UTF-8"),
        ("", "ok", "blank input"),
    ]


def test_limits_reject_a_row_and_spare_the_rest() -> None:
    limits = BatchConfig(max_row_bytes=200, max_source_tokens=20)
    rows = [InputRow("1", "a " * 30), InputRow("2", "x" * 300), InputRow("3", "fine"), InputRow("4", "w" * 30)]
    outputs = run(rows, limits)
    assert [status for _, status, _ in outputs] == ["rejected", "rejected", "ok", "ok"]
    assert outputs[0][2] == "30 tokens, more than generate.max_source_tokens = 20"
    assert outputs[1][2] == "300 bytes, more than generate.max_row_bytes = 200"


def test_a_poisoned_row_is_found_and_rejected_alone() -> None:
    generator = Shouter()
    outputs = run([InputRow(str(n), "poison" if n == 5 else f"row {n}") for n in range(8)], generator=generator)
    assert [status for _, status, _ in outputs] == ["ok"] * 5 + ["rejected"] + ["ok"] * 2
    assert outputs[5][2] == "decoding failed: RuntimeError: bad row"
    assert generator.calls == 7


@pytest.mark.parametrize(("task", "status"), [("translate", "flagged"), ("text", "ok")])
def test_a_cut_output_is_flagged_where_it_should_have_ended(task: str, status: str) -> None:
    assert run([InputRow("1", "endless")], generator=Shouter(task))[0][1] == status


def test_a_low_score_is_flagged() -> None:
    outputs = run([InputRow("1", "ab"), InputRow("2", "a longer one")], BatchConfig(min_score=-0.5))
    assert [status for _, status, _ in outputs] == ["ok", "flagged"]
    assert outputs[1][2] == "score below -0.5"


def test_nothing_in_nothing_out() -> None:
    assert run([]) == []
