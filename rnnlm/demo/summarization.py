"""The synthetic summarization corpus: reports of events, and one sentence for each, with the lexicon of `translation`."""

import random
from functools import cache

from rnnlm.demo.names import names
from rnnlm.demo.reports import Event, Reporter
from rnnlm.demo.splits import SEED, Part, Row, Split, draw_parts, wants_combination, wants_names, withheld

_WORDS = range(35, 61)


def rows(split: Split) -> list[Row]:
    """Rows of a split: `id`, `source` (the report), `target` (its summary), `tags` (kind and phenomena)."""
    return [dict(row) for row in _corpus()[split]]


def new_inputs() -> list[str]:
    """Reports that are in no split."""
    return [row["source"] for row in _corpus()["new"]]


@cache
def _corpus() -> dict[Part, list[Row]]:
    """All parts; none repeats a report or a summary of another."""
    return draw_parts(_draw)


def _draw(split: Part, size: int, taken: set[str]) -> list[Row]:
    rng = random.Random(f"{SEED}/summarization/{split}")
    reporters = {True: Reporter(rng, names(split)), False: Reporter(rng, names("train"))}
    found: list[Row] = []
    while len(found) < size:
        own_names, combined = wants_names(split, len(found)), wants_combination(split, len(found))
        event = reporters[own_names].event()
        if _has_withheld(event) != combined:
            continue
        source, target = reporters[own_names].report(event), event.summary()
        if len(source.split()) not in _WORDS or not taken.isdisjoint((source, target)):
            continue
        taken.update((source, target))
        row_id = f"summarization-{split}-{len(found):05d}"
        tags = ",".join(_tags(event, combined=combined, own_names=own_names))
        found.append({"id": row_id, "source": source, "target": target, "tags": tags})
    return found


def _has_withheld(event: Event) -> bool:
    return event.thing is not None and withheld(event.kind, event.thing.english)


def _tags(event: Event, *, combined: bool, own_names: bool) -> list[str]:
    marks = {
        "name": True,
        "number": True,
        "price": event.kind != "match",
        "time": ":" in event.summary(),
        "unseen_combination": combined,
        "unseen_name": own_names,
    }
    return sorted({event.kind} | {mark for mark, holds in marks.items() if holds})
