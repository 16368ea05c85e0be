"""One shard of input rows -> as many output rows, whatever the rows hold.

Rows are decoded in the batches that the generator plans, which are a function of the shard alone. A batch that cannot be
decoded is decoded row by row; a row that cannot be decoded alone either is rejected, and the rest of its batch is decoded
together once more, with a copy of a neighbour in its place. So the outputs of a shard depend on its rows only, not on what
happened on the way.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from rnnlm.batch.apart import DiedError
from rnnlm.batch.config import BatchConfig
from rnnlm.batch.here import Decoded
from rnnlm.batch.inputs import InputRow
from rnnlm.batch.job import OutputRow

if TYPE_CHECKING:
    from rnnlm.decoding.generator import Output

TRIES = 3
"""How often a row has to end the process that decodes it alone, before the row is to blame and not a kill from outside."""
Made = TypeVar("Made")


class Decoder(Protocol):
    """`Here`, `Apart`, or what stands for them in a test."""

    def count_tokens(self, text: str) -> int | str:
        """Tokens of a text, or why they cannot be counted."""

    def plan(self, texts: Sequence[str]) -> list[list[int]] | str:
        """The batches in which texts are decoded, as their places, or why there are none."""

    def decode(self, texts: Sequence[str], keys: Sequence[str]) -> Decoded:
        """Outputs for texts, or why there are none."""


def generate_rows(decoder: Decoder, rows: Sequence[InputRow], limits: BatchConfig, *, free: bool) -> list[OutputRow]:
    """Generate a shard. Never raises for what a row holds: a row that cannot be decoded alone either is rejected.

    Args:
        decoder: decodes texts.
        rows: of the shard.
        limits: what is rejected or flagged.
        free: the outputs have no end of their own.
    """
    problems = [row.problem or _too_long(decoder, row, limits) for row in rows]
    usable = [number for number, row in enumerate(rows) if not problems[number] and row.text and row.text.strip()]
    outputs: dict[int, Output | str] = {}
    for batch in _plan(decoder, [rows[number] for number in usable]):
        numbers = [usable[place] for place in batch]
        outputs.update(zip(numbers, _generate(decoder, [rows[number] for number in numbers]), strict=True))
    return [
        _output_row(row, problems[number], outputs.get(number), limits.min_score, free)
        for number, row in enumerate(rows)
    ]


def _output_row(
    row: InputRow, problem: str | None, made: "Output | str | None", min_score: float | None, free: bool
) -> OutputRow:
    if problem is not None:
        return OutputRow(row.row_id, row.text, "", None, "rejected", problem)
    if made is None:
        return OutputRow(row.row_id, row.text, "", None, "ok", "blank input")
    if isinstance(made, str):
        return OutputRow(row.row_id, row.text, "", None, "rejected", made)
    if min_score is not None and made.score is not None and made.score < min_score:
        return OutputRow(row.row_id, row.text, made.text, made.score, "flagged", f"score below {min_score:g}")
    if made.truncated and not free:  # free text has no end of its own
        return OutputRow(row.row_id, row.text, made.text, made.score, "flagged", "output cut at decode.max_length")
    return OutputRow(row.row_id, row.text, made.text, made.score, "ok", None)


def _too_long(decoder: Decoder, row: InputRow, limits: BatchConfig) -> str | None:
    """Why a row is over a limit. Bytes are looked at first, so that no tokenizer ever sees a huge row."""
    text = row.text or ""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > limits.max_row_bytes:
        return f"{size} bytes, more than generate.max_row_bytes = {limits.max_row_bytes}"
    if size <= limits.max_source_tokens:
        return None  # a token is at least a byte
    tokens = _tried(lambda: decoder.count_tokens(text))
    if isinstance(tokens, str):
        return tokens
    if tokens > limits.max_source_tokens:
        return f"{tokens} tokens, more than generate.max_source_tokens = {limits.max_source_tokens}"
    return None


def _plan(decoder: Decoder, rows: Sequence[InputRow]) -> list[list[int]]:
    """Batches of rows; those that the generator leaves out come last. A row that breaks the plan is found row by row."""
    if not rows:
        return []
    batches = _tried(lambda: decoder.plan([row.text or "" for row in rows]))
    if isinstance(batches, str):
        return [[place] for place in range(len(rows))]
    left_out = sorted(set(range(len(rows))) - {place for batch in batches for place in batch})
    return [*batches, left_out] if left_out else batches


def _generate(decoder: Decoder, rows: Sequence[InputRow]) -> "list[Output | str]":
    """Outputs of a batch, or for a row that fails alone too, the reason."""

    def decode(some: Sequence[InputRow]) -> Decoded:
        return decoder.decode([row.text or "" for row in some], [row.row_id for row in some])

    def together(some: Sequence[InputRow]) -> Decoded:
        try:
            return decode(some)
        except DiedError as error:
            return str(error)

    made = together(rows)
    if not isinstance(made, str):
        return list(made)
    alone: list[Output | str] = []
    for row in rows:
        single = _tried(lambda row=row: decode([row]))  # type: ignore[misc]
        alone.append(single if isinstance(single, str) else single[0])
    fine = [place for place, output in enumerate(alone) if not isinstance(output, str)]
    # The places of rejected rows are taken by copies of their neighbours: the last digits of a score depend on the rows of
    # a batch, and on their order by length.
    filled = [min(fine, key=lambda other: abs(other - place)) for place in range(len(rows))] if fine else []
    again = together([rows[place] for place in filled]) if fine else ""
    if not isinstance(again, str):
        for place in fine:
            alone[place] = again[place]
    return alone


def _tried(call: Callable[[], Made]) -> Made | str:
    """What a call gives, or the reason of its failure; it may end its process as often as a kill from outside could be it."""
    reason = ""
    for _ in range(TRIES):
        try:
            return call()
        except DiedError as error:
            reason = f"{error}, {TRIES} times"
    return reason
