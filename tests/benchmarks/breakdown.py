"""Where the time of a training step goes: the share of each kind of operation, of the code that `train` runs.

    python tests/benchmarks/breakdown.py [a b c d e] [--precision bf16] [--threads 1] [--steps 20]

Times are those of torch's profiler, of each operation without the ones that it calls; what is left of the wall time without the
profiler lies between operations.
"""

import argparse
import time
from collections import Counter

import torch
from jobs import JOBS
from kept import keep
from ours import training
from torch.profiler import ProfilerActivity

KINDS = {
    "products": ("mm", "linear", "mkldnn_rnn", "bmm", "matmul"),
    "optimizer": ("_fused_", "_foreach_"),
    "sums and extremes": ("sum", "amax", "max", "mean", "norm", "logsumexp"),
    "moving and converting": (
        "copy_", "cat", "index", "gather", "scatter", "embedding", "reorder", "fill_", "zero_", "clone", "pad",
    ),
    "elementwise": (
        "add", "sub", "mul", "div", "sigmoid", "tanh", "exp", "log", "neg", "where", "lerp", "ge", "bitwise", "xor", "and", "shift",
    ),
}  # fmt: skip
"""Parts of operations' names; the first kind that fits counts."""
BETWEEN = "between operations"
"""The interpreter, autograd, and what torch does before and after its operations."""


def kind_of(operation: str) -> str:
    """Which row of the table an operation belongs to."""
    library, _, name = operation.partition("::")
    if library not in ("aten", "mkldnn"):
        return BETWEEN
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other operations")


def shares(name: str, precision: str, threads: int, steps: int) -> dict[str, float]:
    """Shares of a job's wall time, the largest first."""
    step = training(JOBS[name], precision, threads)
    for _ in range(5):
        step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    bare_s = time.perf_counter() - started
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        for _ in range(steps):
            step()
        profiled_s = time.perf_counter() - started
    found: Counter[str] = Counter()
    for event in profiler.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    # What the profiler itself costs lies between the operations.
    found[BETWEEN] = max(0.0, bare_s - sum(count for kind, count in found.items() if kind != BETWEEN))
    total = sum(found.values())
    step_ms, profiled_ms = 1e3 * bare_s / steps, 1e3 * profiled_s / steps
    print(f"job {name}, {precision}, {threads} threads: {step_ms:.0f} ms a step ({profiled_ms:.0f} under the profiler)")
    for kind, seconds in found.most_common():
        print(f"  {kind:<24}{100 * seconds / total:5.1f} %")
    return {kind: round(seconds / total, 3) for kind, seconds in found.most_common()}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", default=["a", "b", "e"])
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_intermixed_args()
    torch.set_num_threads(given.threads)
    for name in given.jobs:
        threads = f", {given.threads} threads" if given.threads > 1 else ""
        where = f"where a step's time goes, {name}, {given.precision}{threads}"
        keep(where, shares(name, given.precision, given.threads, given.steps))


if __name__ == "__main__":
    main()
