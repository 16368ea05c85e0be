"""The table of benchmark results, made of docs/results.jsonl and written between two comments of a Markdown file.

    make results                                        into README.md
    python tests/benchmarks/results.py OTHER.md         elsewhere

The file has a line `<!-- results -->` and, below it, a line `<!-- end of results -->`. Runs that differ in nothing but their
seed are one row: mean, and in brackets the least and the greatest.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results.jsonl"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
PRIMARY = ("bleu", "rouge1", "bits_per_byte", "perplexity")
"""Of results from before it was noted what was measured: the first that is there."""
ADAPTED = {"perplexity_with_cache": "with a neural cache", "perplexity_dynamic": "with dynamic evaluation"}
"""Figures of a model that adapts while it is scored; they never stand alone."""
HEADER = ["experiment", "figure", "beside it", "parameters (without embeddings)", "training, s", "machine", "command"]
BESIDE = {
    "multi30k_de_en": "28.1 (tutorial GRU with attention), 33.5 (best public RNN found)",
    "samsum": "first three turns 31.3 / 8.7 / 24.2, longest three 32.3 / 10.4 / 24.6, by the same scorer",
    "ptb_lstm": "115.9 (two layers of 200, Zaremba et al. 2014)",
    "ptb_lstm_tuned": "82.1 without a cache (two layers of 650, Zaremba et al. 2014)",
    "ptb_awd_lstm": "58.8 (AWD-LSTM without fine-tuning, Merity et al. 2017)",
    "multi30k_de_en_transformer": "the LSTM above",
    "tinyshakespeare_lstm": "1.470 nats (nanoGPT's small GPT, on a GPU)",
}
"""What others reached, or what is trivial."""
Result = Mapping[str, Any]


def without_seed(options: Iterable[str]) -> tuple[str, ...]:
    """Options that runs of one row have in common."""
    return tuple(option for option in options if not option.startswith("seed="))


def figures(result: Result) -> dict[str, float]:
    """What a row tells of a run, by its name for people."""
    split = result.get("split", "test")
    metrics = result["metrics"]
    primary = result.get("primary") or next(name for name in PRIMARY if f"{split}/{name}" in metrics)
    found = {primary.replace("_", " "): metrics[f"{split}/{primary}"]}
    if primary == "bits_per_byte":
        found["nats a token"] = math.log(metrics[f"{split}/perplexity"])
    if primary.startswith("rouge"):
        return {name: metrics[f"{split}/{name}"] for name in ("rouge1", "rouge2", "rougeL")}
    if primary == "perplexity":
        there = {name: metrics.get(f"{split}/{metric}") for metric, name in ADAPTED.items()}
        found |= {name: value for name, value in there.items() if value is not None}
    return found


def spread(values: Sequence[float]) -> str:
    """The mean, and the least and the greatest of several."""
    digits = 3 if max(values) < 10 else 2 if max(values) < 100 else 1
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f}, {len(values)} seeds)"


def row(results: Sequence[Result]) -> list[str]:
    """One row of runs that differ in their seed alone."""
    last = results[-1]
    of_runs = [figures(result) for result in results]
    told = [f"{name} {spread([each[name] for each in of_runs])}" for name in of_runs[-1]]
    signature = last.get("signatures", {}).get(last.get("primary"))
    parameters = ""
    if "parameters" in last:
        parameters = f"{last['parameters'] / 1e6:.2f} M ({last['layer_parameters'] / 1e6:.2f} M)"
    seconds = [result["train_s"] for result in results if "train_s" in result]
    options = without_seed(last["options"])
    words = [word for result in results for word in result["options"] if word.startswith("seed=")]
    seeds = sorted((word.removeprefix("seed=") for word in words), key=int)
    command = f"make long NAME={last['name']} DATA=..."
    command += f" SEEDS={','.join(seeds)}" if seeds else ""
    command += f' OPTIONS="{" ".join(options)}"' if options else ""
    command = last.get("command", command)
    return [
        f"`{last['name']}`",
        ", ".join(told) + (f"; `{signature}`" if signature else ""),
        BESIDE.get(last["name"], ""),
        parameters,
        f"{mean(seconds):,.0f}" if seconds else "",
        last["machine"],
        f"`{command}`",
    ]


def compared(result: Result) -> list[list[str]]:
    """Header and rows of a comparison."""
    rows = result["rows"]
    metric = rows[0]["metric"]
    lengths = rows[0]["lengths"]
    columns = {
        "model/parameters_without_embeddings": "without embeddings",
        "time/train_s": "training, s",
        "throughput/tokens_per_second": "tokens/s",
        "generate/stream_tokens_per_second": "writing one stream, tokens/s",
        "generate/batch_tokens_per_second": "a batch, tokens/s",
    }
    there = [key for key in columns if key in rows[0]]
    header = [result["name"], metric, *(columns[key] for key in there)]
    header += [f"{each['shortest']} to {each['longest']} words" for each in lengths]
    cells = [
        [
            str(each["experiment"]),
            f"{each[metric]:.4g}",
            *(f"{each[key]:,.0f}" for key in there),
            *(f"{one['value']:.1f}" for one in each["lengths"]),
        ]
        for each in rows
    ]
    return [header, *cells]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in rows]
    lines = [header, ["---"] * len(header), *escaped]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render(results: Sequence[Result]) -> str:
    """All tables: the runs, then the newest of each comparison."""
    groups: dict[tuple[Any, ...], dict[tuple[str, ...], Result]] = {}
    comparisons: dict[tuple[Any, ...], Result] = {}
    told_in_full = {result["name"] for result in results if "parameters" in result}
    for result in results:
        if result["exit_code"] or not result["metrics"]:
            continue
        if "parameters" not in result and "rows" not in result and result["name"] in told_in_full:
            continue  # from before more than figures was noted
        key = (result["name"], without_seed(result["options"]), result["machine"])
        if "rows" in result:
            comparisons[key] = result
        else:
            groups.setdefault(key, {})[tuple(result["options"])] = result  # the newest of each seed
    tables = [markdown(HEADER, [row(list(runs.values())) for runs in groups.values()])] if groups else []
    for result in comparisons.values():
        header, *cells = compared(result)
        tables.append(markdown(header, cells))
    return "\n\n".join(tables)


def replaced(text: str, table: str) -> str:
    """A Markdown text with the table between its two comments.

    Raises:
        ValueError: the comments are not there, or in another order.
    """
    begin, end = text.find(f"{BEGIN}\n"), text.find(f"{END}\n")
    if begin < 0 or end < begin:
        raise ValueError(f"there has to be a line {BEGIN} and below it a line {END}")
    return f"{text[: begin + len(BEGIN)]}\n\n{table}\n\n{text[end:]}"


def main() -> int:
    """Write the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = [json.loads(line) for line in arguments.results.read_text(encoding="utf-8").splitlines()]
    try:
        text = replaced(arguments.file.read_text(encoding="utf-8"), render(results))
    except ValueError as error:
        print(f"{arguments.file}: {error}", file=sys.stderr)
        return 2
    arguments.file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
