"""Where figures of speed are kept: docs/bench.json, a key a measurement."""

import datetime
import json
import os
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parents[2] / "docs/bench.json"


def machine() -> str:
    """The cores that may be used, and their name."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "unknown")
    return f"{len(os.sched_getaffinity(0))} x {name}"


def keep(key: str, figures: dict[str, Any]) -> None:
    """Put the figures in the place of those of an earlier run."""
    kept = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() else {}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    kept[key] = {"date": date, "machine": machine(), **figures}
    RESULT.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    print(f"kept in {RESULT.relative_to(RESULT.parents[1])}")
