"""The rows of the sample table: pairs, or beginnings of held-out documents for a language model to continue."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rnnlm.decoding.config import DecodeConfig
from rnnlm.decoding.generator import Generator, Output
from rnnlm.evaluation.quality import Quality
from rnnlm.evaluation.report import Sample

Row = Mapping[str, Any]

PROMPT_CHARACTERS = 120
REFERENCE_CHARACTERS = 300
CONTINUATION_TOKENS = 64


class Prompt(NamedTuple):
    """A place in a document."""

    row: int
    text: str
    """What stands before the place; ends where a word ends."""
    reference: str
    """What stands behind it."""


def choose_prompts(texts: Sequence[str], count: int) -> list[Prompt]:
    """At most so many places, evenly spread over all characters of all documents.

    A prompt begins at the start of a line where one is near, else of a word. Documents without two words give none.
    """
    total = sum(map(len, texts))
    found: dict[tuple[int, int], Prompt] = {}
    row = passed = 0
    for place in range(count if total else 0):
        position = (2 * place + 1) * total // (2 * count)
        while position - passed >= len(texts[row]):
            passed += len(texts[row])
            row += 1
        start = _start(texts[row], position - passed)
        prompt = _prompt(row, texts[row], start)
        if prompt is not None:
            found.setdefault((row, start), prompt)
    return list(found.values())


def _start(text: str, position: int) -> int:
    """The nearest beginning of a line before a place, else of a word; 0 in a short text."""
    if len(text) <= 2 * PROMPT_CHARACTERS:
        return 0
    position = min(position, len(text) - 2 * PROMPT_CHARACTERS)
    line = text.rfind("\n", 0, position + 1) + 1
    if position - line <= PROMPT_CHARACTERS:
        return line
    return max(line, text.rfind(" ", 0, position + 1) + 1)


def _prompt(row: int, text: str, start: int) -> Prompt | None:
    """A prompt of about the usual length, or of half of what is left."""
    left = len(text.rstrip()) - start
    wanted = start + min(PROMPT_CHARACTERS, left // 2)
    ends = [end for end in (text.find(" ", wanted), text.find("\n", wanted)) if end >= 0]
    end = min(ends, default=-1)
    if end < 0 or not text[start:end].strip() or not text[end:].strip():
        return None
    return Prompt(row, text[start:end], text[end : end + REFERENCE_CHARACTERS])


def pair_samples(rows: Sequence[Row], outputs: Sequence[Output], quality: Quality, count: int) -> list[Sample]:
    """Rows evenly spread over the split, so that nobody can pick the good ones."""
    places = sorted({(2 * place + 1) * len(rows) // (2 * count) for place in range(count)})
    return [
        Sample(
            id=str(rows[place]["id"]),
            source=str(rows[place]["source"]),
            reference=str(rows[place]["target"]),
            output=outputs[place].text,
            score=quality.row(place),
            confidence=outputs[place].score,
            tags=str(rows[place].get("tags") or ""),
        )
        for place in places
    ]


def continuation_settings(generator: Generator) -> DecodeConfig:
    """The generator's own settings, for continuations of a length that fits a table."""
    shorter = min(generator.decode.max_length, CONTINUATION_TOKENS)
    return generator.decode.model_copy(update={"max_length": shorter})


def continuations(generator: Generator, rows: Sequence[Row], texts: Sequence[str], count: int) -> list[Sample]:
    """Prompts from the documents, what stands behind them, and what the model writes there."""
    prompts = choose_prompts(texts, count)
    outputs = generator.generate([prompt.text for prompt in prompts], continuation_settings(generator))
    return [
        Sample(
            id=str(rows[prompt.row]["id"]),
            source=prompt.text,
            reference=prompt.reference,
            output=output.text,
            score=None,
            confidence=output.score,
            tags=str(rows[prompt.row].get("tags") or ""),
        )
        for prompt, output in zip(prompts, outputs, strict=True)
    ]
