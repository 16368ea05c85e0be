"""Commands and the memory that they take, their children included."""

import ctypes
import os
import subprocess
import time
from dataclasses import dataclass

import psutil

_SUBREAPER = 36
_EVERY_S = 0.2


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds from start to end, seconds of processors, most memory at once (sum of PSS)."""

    seconds: float
    cpu_s: float
    peak_bytes: int


def measured(command: list[str], environment: dict[str, str]) -> Cost:
    """Run a command and look at the memory of its processes five times a second.

    Raises:
        SystemExit: it failed; with what it said.
    """
    # Children of a child that ended become ours, and so stay in sight.
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    started, cpu = time.perf_counter(), os.times()
    process = subprocess.Popen(
        command, env=os.environ | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    peak = 0
    while True:
        try:
            output, _ = process.communicate(timeout=_EVERY_S)
            break
        except subprocess.TimeoutExpired:
            peak = max(peak, tree_bytes())
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{output}")
    now = os.times()
    spent = now.children_user + now.children_system - cpu.children_user - cpu.children_system
    return Cost(time.perf_counter() - started, spent, peak)


def tree_bytes() -> int:
    """Sum of PSS over everything that was started from here."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total
