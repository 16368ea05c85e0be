"""One shard of input rows -> as many output rows, whatever the rows hold."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rnnlm.batch.config import BatchConfig
from rnnlm.batch.inputs import InputRow
from rnnlm.batch.job import OutputRow
from rnnlm.decoding.config import DecodeConfig

if TYPE_CHECKING:
    from rnnlm.decoding.generator import Generator, Output


def generate_rows(
    generator: "Generator", rows: Sequence[InputRow], decode: DecodeConfig, limits: BatchConfig
) -> list[OutputRow]:
    """Generate a shard. Never raises for what a row holds: a row that cannot be decoded alone either is rejected."""
    problems = [row.problem or _too_long(generator, row, limits) for row in rows]
    usable = [number for number, row in enumerate(rows) if not problems[number] and row.text and row.text.strip()]
    outputs = dict(zip(usable, _generate(generator, [rows[number] for number in usable], decode), strict=True))
    return [
        _output_row(row, problems[number], outputs.get(number), limits.min_score, generator.task == "text")
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


def _too_long(generator: "Generator", row: InputRow, limits: BatchConfig) -> str | None:
    """Why a row is over a limit. Bytes are looked at first, so that no tokenizer ever sees a huge row."""
    text = row.text or ""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > limits.max_row_bytes:
        return f"{size} bytes, more than generate.max_row_bytes = {limits.max_row_bytes}"
    if size <= limits.max_source_tokens:
        return None  # a token is at least a byte
    tokens = len(generator.tokenizer.encode([text])[0])
    if tokens > limits.max_source_tokens:
        return f"{tokens} tokens, more than generate.max_source_tokens = {limits.max_source_tokens}"
    return None


def _generate(generator: "Generator", rows: Sequence[InputRow], decode: DecodeConfig) -> "list[Output | str]":
    """Outputs, or for a row that fails alone too, the reason."""
    if not rows:
        return []
    try:
        return list(generator.generate([row.text or "" for row in rows], decode, keys=[row.row_id for row in rows]))
    except Exception as error:
        if len(rows) == 1:
            return [f"decoding failed: {type(error).__name__}: {str(error)[:200]}"]
    half = len(rows) // 2
    return _generate(generator, rows[:half], decode) + _generate(generator, rows[half:], decode)
