from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from rnnlm.batch.apart import DiedError
from rnnlm.batch.config import BatchConfig
from rnnlm.batch.here import Decoded, Here
from rnnlm.batch.inputs import InputRow
from rnnlm.batch.work import TRIES, generate_rows
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
    """A generator that shouts two rows at a time, and fails on a batch that holds poison."""

    def __init__(self) -> None:
        self.tokenizer = Words()
        self.batches: list[list[str]] = []

    def plan(self, texts: Sequence[str], decode: DecodeConfig) -> list[list[int]]:
        return [list(range(len(texts)))[at : at + 2] for at in range(0, len(texts), 2)]

    def generate(self, texts: Sequence[str], decode: DecodeConfig, keys: Sequence[str]) -> list[Made]:
        self.batches.append(list(texts))
        if "poison" in texts:
            raise RuntimeError("bad row")
        assert len(keys) == len(texts)
        return [Made(text.upper(), -len(text) / 10, truncated="endless" in text) for text in texts]


class Mortal:
    """Decodes like `Here`, but dies as often as it is told."""

    def __init__(self, deaths: int, cause: str = "poison") -> None:
        self.deaths = deaths
        self.cause = cause
        self.here = Here(as_any(Shouter()), DecodeConfig())

    def count_tokens(self, text: str) -> int | str:
        self._live([text])
        return self.here.count_tokens(text)

    def plan(self, texts: Sequence[str]) -> list[list[int]] | str:
        if self.cause == "plan":
            raise DiedError("it died")
        return self.here.plan(texts)

    def decode(self, texts: Sequence[str], keys: Sequence[str]) -> Decoded:
        self._live(texts)
        return self.here.decode([text.replace("poison", "fine") for text in texts], keys)

    def _live(self, texts: Sequence[str]) -> None:
        if self.deaths and any(self.cause in text for text in texts):
            self.deaths -= 1
            raise DiedError("it died")


def as_any(value: object) -> Any:
    return value


def run(
    rows: Sequence[InputRow], limits: BatchConfig | None = None, decoder: Any = None, free: bool = False
) -> list[tuple[str, str, str | None]]:
    decoder = decoder or Here(as_any(Shouter()), DecodeConfig())
    made = generate_rows(decoder, rows, limits or BatchConfig(), free=free)
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
    rows = [InputRow(str(n), "poison" if n == 5 else f"row {n}") for n in range(7)]
    outputs = run(rows, decoder=Here(as_any(generator), DecodeConfig()))
    assert [status for _, status, _ in outputs] == ["ok"] * 5 + ["rejected"] + ["ok"]
    assert outputs[5][2] == "decoding failed: RuntimeError: bad row"
    batches = [
        ["row 0", "row 1"],
        ["row 2", "row 3"],
        ["row 4", "poison"],
        ["row 4"],
        ["poison"],
        ["row 4", "row 4"],
        ["row 6"],
    ]
    assert generator.batches == batches, "the other batches stay as they are"


def test_a_row_that_ends_every_process_is_rejected() -> None:
    rows = [InputRow(str(n), "poison" if n == 1 else f"row {n}") for n in range(4)]
    outputs = run(rows, decoder=Mortal(1 + TRIES))
    assert [status for _, status, _ in outputs] == ["ok", "rejected", "ok", "ok"]
    assert outputs[1][2] == f"it died, {TRIES} times"


def test_fewer_deaths_are_not_the_fault_of_the_row() -> None:
    rows = [InputRow(str(n), "poison" if n == 1 else f"row {n}") for n in range(4)]
    assert run(rows, decoder=Mortal(TRIES)) == run(rows, decoder=Mortal(0))


def test_a_batch_that_dies_whole_but_not_in_parts_is_made_in_parts() -> None:
    class Narrow(Mortal):
        def _live(self, texts: Sequence[str]) -> None:
            if len(texts) > 1:
                raise DiedError("too much")

    rows = [InputRow(str(n), f"row {n}") for n in range(4)]
    assert run(rows, decoder=Narrow(0)) == run(rows)


def test_a_death_while_planning_or_counting_is_a_matter_of_rows_too() -> None:
    rows = [InputRow("1", "one"), InputRow("2", "w" * 30)]
    assert run(rows, decoder=Mortal(0, "plan")) == run(rows)
    limits = BatchConfig(max_source_tokens=20)
    assert run(rows, limits, Mortal(TRIES, "www"))[1][1:] == ("rejected", f"it died, {TRIES} times")
    assert run(rows, limits, Mortal(TRIES - 1, "www"))[1][1] == "ok"


@pytest.mark.parametrize(("free", "status"), [(False, "flagged"), (True, "ok")])
def test_a_cut_output_is_flagged_where_it_should_have_ended(free: bool, status: str) -> None:
    assert run([InputRow("1", "endless")], free=free)[0][1] == status


def test_a_low_score_is_flagged() -> None:
    outputs = run([InputRow("1", "ab"), InputRow("2", "a longer one")], BatchConfig(min_score=-0.5))
    assert [status for _, status, _ in outputs] == ["ok", "flagged"]
    assert outputs[1][2] == "score below -0.5"


def test_nothing_in_nothing_out() -> None:
    assert run([]) == []
