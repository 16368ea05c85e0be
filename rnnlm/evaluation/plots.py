"""Pictures of a training and of an evaluation, as PNG bytes.

Drawn with matplotlib's object interface on the Agg canvas: no display, no global state, and only the font that comes
with matplotlib. Names and tokens are drawn as they stand, never read as formulas.
"""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from rnnlm.evaluation import costs
from rnnlm.evaluation.baselines import Baseline
from rnnlm.evaluation.gate import LOWER_IS_BETTER
from rnnlm.evaluation.report import LengthBin, Report, metric_name
from rnnlm.training import names

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and values."""

_INK, _MUTED, _FAINT, _GRID = "#1b2733", "#5b6875", "#b9c2cb", "#e6eaee"
_BLUE, _ORANGE = "#1f6fb2", "#d9772b"
_FONT = "DejaVu Sans"
_DPI = 150
_MAX_ATTENTION_TOKENS = 40
_MAX_POINTS = 1_000
_HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#b7d4ea", "#4a93c9", "#12436d"])
_ROLE_COLOURS = {"trivial": _FAINT, "reference": _FAINT, "oracle": "#dfd3c3"}


def curves_png(history: Mapping[str, Curve], *, title: str = "Training", best_step: float | None = None) -> bytes:
    """One panel for each metric over optimizer steps, from top to bottom, with the last and the best value marked.

    Args:
        history: metric name -> (steps, values), in the order of the panels.
        title: heading.
        best_step: step of the checkpoint that was kept, drawn as a line.
    """
    figure = Figure(figsize=(8.0, 1.0 + 2.3 * max(1, len(history))), layout="constrained")
    panels = np.atleast_1d(figure.subplots(max(1, len(history)), 1, sharex=True))
    for axes, (name, curve) in zip(panels, history.items()):
        _style(axes, grid="y")
        _curve(axes, name, curve)
        if best_step is not None:
            axes.axvline(best_step, color=_ORANGE, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    _label(panels[-1].set_xlabel, "Optimizer step" + (" (dashed: checkpoint kept)" if best_step is not None else ""))
    _heading(figure, title)
    return _png(figure)


def report_pngs(report: Report) -> dict[str, bytes]:
    """The pictures of an evaluation by file name."""
    found = {}
    value = report.figures[report.primary]
    if report.baselines and value is not None:
        found["baselines.png"] = baselines_png(report.primary, value, report.baselines)
    if report.lengths:
        found["by_length.png"] = length_bars_png(report.lengths, report.primary)
    return found


def baselines_png(metric: str, value: float, baselines: Sequence[Baseline], *, title: str | None = None) -> bytes:
    """The model's figure and those of the baselines as bars, the best on top."""
    measured = [one for one in baselines if metric in one.figures]
    bars = [(one.name.replace("_", " "), one.figures[metric], _ROLE_COLOURS[one.role]) for one in measured]
    bars.append(("this model", value, _BLUE))
    bars.sort(key=lambda bar: bar[1], reverse=metric not in LOWER_IS_BETTER)
    figure = Figure(figsize=(8.0, 1.3 + 0.48 * len(bars)), layout="constrained")
    axes = figure.subplots()
    _style(axes, grid="")
    positions = range(len(bars))
    heights = [bar[1] for bar in bars]
    axes.barh(positions, heights, height=0.66, color=[bar[2] for bar in bars])
    axes.invert_yaxis()
    axes.set_yticks(positions)
    for text, bar in zip(axes.set_yticklabels([bar[0] for bar in bars]), bars, strict=True):
        text.set(fontsize=10, fontfamily=_FONT, color=_INK, fontweight="bold" if bar[0] == "this model" else "normal")
    _bar_values(axes, heights)
    direction = "lower is better" if metric in LOWER_IS_BETTER else "higher is better"
    _heading(figure, title or f"{metric_name(metric)} beside the baselines ({direction})")
    return _png(figure)


def length_bars_png(bins: Sequence[LengthBin], metric: str, *, title: str | None = None) -> bytes:
    """Quality by words of the source, with the number of rows under each bar."""
    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    axes = figure.subplots()
    _style(axes, grid="y")
    positions = range(len(bins))
    bars = axes.bar(positions, [one.value for one in bins], width=0.72, color=_BLUE, zorder=2)
    labels = [f"{one.value:.1f}" for one in bins]
    for text in axes.bar_label(bars, labels, padding=3, fontsize=9, color=_INK):
        text.set_fontfamily(_FONT)
    axes.set_xticks(positions, [f"{one.label}\n{one.num_rows:,} rows" for one in bins])
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    _label(axes.set_xlabel, "Words of the source")
    _label(axes.set_ylabel, metric_name(metric))
    _heading(figure, title or f"{metric_name(metric)} by length of the source")
    return _png(figure)


_COSTS = {
    names.NUM_LAYER_PARAMETERS: "Parameters without embeddings",
    names.phase_seconds("train"): "Seconds of training",
    names.PEAK_MEMORY: "Peak memory of training, MB",
    costs.STREAM: "Tokens a second, written in one stream",
    costs.BATCH: f"Tokens a second, written in a batch of {costs.BATCH_ROWS}",
}
"""The panels of a comparison, by what lies on their horizontal axis; the last two for language models alone."""
_COLOURS = [_BLUE, _ORANGE, "#2f8f5b", "#8a5fb0", "#b04a5a", "#5b6875", "#a88a2b"]


def comparison_png(rows: Sequence[Mapping[str, Any]], metric: str, *, title: str | None = None) -> bytes:
    """Quality of several experiments against size, time, memory and speed, a panel each; for language models a last panel
    has the memory that is held after so many tokens.

    Args:
        rows: `experiment`, the metric and the costs of each.
        metric: key of the quality.
        title: heading.
    """
    name = metric.rpartition("/")[2]
    shown = {key: label for key, label in _COSTS.items() if all(key in row for row in rows)}
    writes = costs.STREAM in shown
    lines = 2 if writes else 1
    figure = Figure(figsize=(12.0, 0.6 + 3.6 * lines), layout="constrained")
    panels = figure.subplots(lines, 3, squeeze=False).flatten()
    for axes, (key, label) in zip(panels, shown.items()):
        _style(axes, grid="y")
        for place, row in enumerate(rows):
            marker = str(row["experiment"]) if axes is panels[0] else None
            axes.scatter([row[key]], [row[metric]], s=70, color=_colour(place), label=marker, zorder=3)
        axes.margins(0.2)
        axes.set_xlim(0, 1.15 * max(float(row[key]) for row in rows) or 1.0)
        _label(axes.set_xlabel, label)
        _label(axes.set_ylabel, metric_name(name))
    if writes:
        _memory_curves(panels[-1], rows)
    figure.legend(loc="outside lower center", ncols=min(4, len(rows)), frameon=False, prop={"family": _FONT, "size": 9})
    direction = "lower is better" if name in LOWER_IS_BETTER else "higher is better"
    _heading(figure, title or f"{metric_name(name)} ({direction}) and what it costs")
    return _png(figure)


def _memory_curves(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    _style(axes, grid="y")
    for key, dashes in ((costs.held_key, "-"), (costs.full_cache_key, ":")):
        for place, row in enumerate(rows):
            if key(costs.LENGTHS[0]) in row:
                held = [row[key(length)] for length in costs.LENGTHS]
                axes.plot(costs.LENGTHS, held, color=_colour(place), linestyle=dashes, marker="o", markersize=3.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _label(axes.set_xlabel, "Tokens read and written (dotted: with a full cache)")
    _label(axes.set_ylabel, "Weights and state of one stream, MB")


def lengths_png(rows: Sequence[Mapping[str, Any]], metric: str, *, title: str | None = None) -> bytes:
    """Quality of several experiments by words of the source, a line each.

    Args:
        rows: `experiment` and the bins of its `lengths`, as in a report.
        metric: key of the quality.
        title: heading.
    """
    name = metric_name(metric.rpartition("/")[2])
    figure = Figure(figsize=(8.0, 4.6), layout="constrained")
    axes = figure.subplots()
    _style(axes, grid="y")
    bins = [LengthBin(**each) for each in rows[0]["lengths"]]
    for place, row in enumerate(rows):
        values = [each["value"] for each in row["lengths"]]
        axes.plot(range(len(values)), values, color=_colour(place), marker="o", label=str(row["experiment"]))
    axes.set_xticks(range(len(bins)), [f"{one.label}\n{one.num_rows:,} rows" for one in bins])
    axes.set_ylim(bottom=0)
    _label(axes.set_xlabel, "Words of the source")
    _label(axes.set_ylabel, name)
    figure.legend(loc="outside lower center", ncols=min(3, len(rows)), frameon=False, prop={"family": _FONT, "size": 9})
    _heading(figure, title or f"{name} by length of the source")
    return _png(figure)


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def attention_png(
    weights_TS: ArrayLike, source_tokens: Sequence[str], target_tokens: Sequence[str], *, title: str = "Attention"
) -> bytes:
    """Where the decoder looked while it wrote each token.

    Args:
        weights_TS: a row of weights for each target token; T target length, S source length.
        source_tokens: labels of the columns. Beyond the first 40 tokens of either side nothing is drawn.
        target_tokens: labels of the rows.
        title: heading.
    """
    source = [_visible(token) for token in source_tokens[:_MAX_ATTENTION_TOKENS]]
    target = [_visible(token) for token in target_tokens[:_MAX_ATTENTION_TOKENS]]
    weights = np.asarray(weights_TS, dtype=np.float64)[: len(target), : len(source)]
    figure, axes = _heat_map_axes(source, target)
    image = axes.imshow(weights, cmap=_HEAT, vmin=0.0, vmax=max(1e-9, float(weights.max(initial=0.0))), aspect="equal")
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(source)), source, rotation=60, ha="left", va="center", rotation_mode="anchor")
    axes.set_yticks(range(len(target)), target)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set(parse_math=False, fontfamily=_FONT, fontsize=8.5, color=_INK)
    _colour_bar(figure, axes, image)
    figure.text(
        *_inches(figure, 0.15, figure.get_figheight() - 0.15), title, ha="left", va="top", fontsize=12.5,
        fontweight="bold", color=_INK, fontfamily=_FONT, parse_math=False,
    )  # fmt: skip
    return _png(figure)


def _heat_map_axes(source: Sequence[str], target: Sequence[str]) -> tuple[Figure, Axes]:
    """Room for cells of equal size and for their labels, in inches; matplotlib's own layout takes seconds for many."""
    cell, character, margin, bar = 0.3, 0.085, 0.3, 0.9
    left = margin + character * max((len(token) for token in target), default=1)
    above = 0.55 + character * max((len(token) for token in source), default=1)
    width, height = cell * max(1, len(source)), cell * max(1, len(target))
    figure = Figure(figsize=(max(4.5, left + width + bar), margin + height + above))
    low, high = _inches(figure, left, margin), _inches(figure, width, height)
    axes = figure.add_axes((*low, *high))
    _style(axes, grid="")
    for edge in ("left", "bottom", "top", "right"):
        axes.spines[edge].set(visible=True, color=_GRID)
    return figure, axes


def _inches(figure: Figure, right: float, up: float) -> tuple[float, float]:
    """A length in inches as shares of a figure."""
    width, height = figure.get_size_inches()
    return right / float(width), up / float(height)


def _curve(axes: Axes, name: str, curve: Curve) -> None:
    steps, values = (_thinned(np.asarray(numbers, dtype=float)) for numbers in curve)
    axes.plot(steps, values, color=_BLUE, linewidth=1.6, marker="o" if len(steps) <= 30 else "", markersize=3.5)
    finite = values[np.isfinite(values)]
    if len(finite) > 4:
        # The steep beginning would flatten the part that decides.
        low, quarter = float(finite.min()), len(finite) // 4
        high = max(float(finite[quarter:].max()), low + 4.0 * (float(finite[quarter]) - low))
        if low < high < finite.max():
            axes.set_ylim(low - 0.06 * (high - low), high)
    axes.set_title(name, loc="left", fontsize=10, color=_MUTED, fontfamily=_FONT, parse_math=False)
    if len(finite):
        text = f"last {values[-1]:.4g}   lowest {finite.min():.4g}   highest {finite.max():.4g}"
        axes.set_title(text, loc="right", fontsize=9, color=_MUTED, fontfamily=_FONT)


def _thinned(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most a thousand points, each the mean of as many neighbours."""
    stride = -(-len(numbers) // _MAX_POINTS)
    if stride <= 1:
        return numbers
    starts = np.arange(0, len(numbers), stride)
    return np.add.reduceat(numbers, starts) / np.diff([*starts, len(numbers)])


def _bar_values(axes: Axes, values: Sequence[float]) -> None:
    """Write each value behind its bar."""
    largest = max(values)
    for position, value in enumerate(values):
        text = f"{value:.2f}" if largest < 1_000 else f"{value:,.0f}"
        axes.annotate(
            text, (value, position), (5, 0), textcoords="offset points", va="center", fontsize=9.5, color=_INK,
            fontfamily=_FONT,
        )  # fmt: skip
    axes.set_xlim(0, 1.12 * largest if largest > 0 else 1.0)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)


def _colour_bar(figure: Figure, axes: Axes, image: AxesImage) -> None:
    place = axes.get_position()
    height = min(place.height, _inches(figure, 0.0, 3.0)[1])
    gap, width = _inches(figure, 0.2, 0.0)[0], _inches(figure, 0.12, 0.0)[0]
    bar = figure.colorbar(image, cax=figure.add_axes((place.x1 + gap, place.y1 - height, width, height)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, labelcolor=_MUTED, length=0, labelfontfamily=_FONT)


def _style(axes: Axes, *, grid: Literal["", "x", "y"]) -> None:
    for edge in ("top", "right", "left"):
        axes.spines[edge].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.tick_params(length=0, labelsize=9, labelcolor=_MUTED, labelfontfamily=_FONT)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=_GRID, linewidth=0.9)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))


def _heading(figure: Figure, title: str) -> None:
    figure.suptitle(
        title, x=0.012, ha="left", fontsize=12.5, fontweight="bold", color=_INK, fontfamily=_FONT, parse_math=False
    )


def _label(setter: Callable[..., object], text: str) -> None:
    setter(text, fontsize=9.5, color=_MUTED, fontfamily=_FONT, parse_math=False)


def _visible(token: str) -> str:
    """A token with its blanks made visible, cut to a length that leaves room for the picture."""
    shown = token.replace("\n", "↵").replace("\t", "→").replace(" ", "·")
    return shown if len(shown) <= 16 else shown[:15] + "…"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A character that the font lacks is drawn as a box; that is all there is to say about it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.patch.set_facecolor("white")
        FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
