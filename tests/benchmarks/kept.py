"""Where figures of speed are kept: docs/bench.json, a key a measurement."""

import datetime
import json
import os
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parents[2] / "docs/bench.json"


def machine() -> str:
    """The cores that may be used, their name, and the numbers that tell generations of one name apart."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    cores = f"{len(os.sched_getaffinity(0))} x {said.get('model name', 'unknown')}"
    return f"{cores} (family {said['cpu family']}, model {said['model']})" if "cpu family" in said else cores


def keep(key: str, figures: dict[str, Any]) -> None:
    """Put the figures in the place of those of an earlier run."""
    kept = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() else {}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    kept[key] = {"date": date, "machine": machine(), **figures}
    RESULT.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    print(f"kept in {RESULT.relative_to(RESULT.parents[1])}")
