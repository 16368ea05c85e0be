"""A picture of what `bench.py` has measured: docs/bench.png, from docs/bench.json.

    python tests/benchmarks/picture.py [--threads 1]

A panel for each job: our fastest way and each peer, with the range of the turns.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kept import RESULT
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

OURS, THEIRS, INK = "#1f6fb2", "#b9c2cb", "#1b2733"
COLUMNS = 2
Row = dict[str, Any]


def panels(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of each job and kind of work: the best of ours, then peers, the fastest first."""
    found = []
    for _, group in itertools.groupby(rows, key=lambda row: (row["job"], row["work"], row["beam"])):
        sides = [row for row in group if "error" not in row]
        ours = max((side for side in sides if side["name"].startswith("rnnlm")), key=lambda side: side["rate"])
        peers = [side for side in sides if not side["name"].startswith("rnnlm")]
        found.append([ours, *sorted(peers, key=lambda side: -side["rate"])])
    return found


def draw(axes: Axes, sides: Sequence[Row], what: str) -> None:
    """Bars of one job."""
    names = [side["name"].replace("+cpu", "") for side in sides]
    rates = [side["rate"] for side in sides]
    ranges = [[side["rate"] - side["lowest"] for side in sides], [side["highest"] - side["rate"] for side in sides]]
    colours = [OURS, *[THEIRS] * (len(sides) - 1)]
    axes.barh(names, rates, xerr=ranges, color=colours, height=0.65, error_kw={"ecolor": INK, "elinewidth": 0.8})
    for place, (side, rate) in enumerate(zip(sides, rates, strict=True)):
        axes.text(side["highest"], place, f"  {rate:,.0f}", va="center", fontsize=8, color=INK)
    axes.set_title(what, loc="left", fontsize=8.5, color=INK)
    axes.set_xlim(0, 1.25 * max(side["highest"] for side in sides))
    axes.invert_yaxis()
    axes.tick_params(labelsize=8, length=0)
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def main() -> None:
    """Draw, and say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULT.with_suffix(".png"))
    given = parser.parse_args()
    kept = json.loads(RESULT.read_text("utf-8"))[f"{given.threads} cores"]
    jobs = panels(kept["rows"])
    figure = Figure(figsize=(12.5, 1.5 * -(-len(jobs) // COLUMNS) + 0.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    spots = figure.subplots(-(-len(jobs) // COLUMNS), COLUMNS, squeeze=False).flat
    for axes, sides in itertools.zip_longest(spots, jobs):
        if sides is None:
            axes.set_visible(False)
            continue
        row = sides[0]
        work = f"decoding, beam {row['beam']}, sentences/s" if row["work"] == "decode" else "training, tokens/s"
        draw(axes, sides, f"{kept['jobs'][row['job']]}: {work}")
    cores = f"{given.threads} core{'s' if given.threads > 1 else ''}"
    figure.suptitle(
        f"{cores} of {kept['machine'].partition(' x ')[2]}, {kept['date']}: median and range of turns", fontsize=10
    )
    figure.savefig(given.output, metadata={"Software": None})
    print(f"drawn in {given.output.name}")


if __name__ == "__main__":
    main()
