"""Figures of the long form of the fault tests, a line of JSON each, for docs/reliability.md."""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

LONG = "RNNLM_LONG_FAULTS"
"""Set: the long form is run."""
REPORT = "RNNLM_FAULTS_REPORT"
"""A file that figures are appended to."""


@pytest.fixture(scope="session")
def long_form() -> bool:
    """Whether the long form is wanted."""
    return bool(os.environ.get(LONG))


@pytest.fixture(scope="session")
def report() -> Callable[..., None]:
    """Appends the figures of a demonstration to the report, where one is wanted: `report(name, kills=20, lost=0)`."""

    def append(name: str, **figures: Any) -> None:
        target = os.environ.get(REPORT)
        if target:
            with Path(target).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"name": name, **figures}) + "\n")

    return append


@pytest.fixture(scope="session")
def mounted() -> Callable[..., contextlib.AbstractContextManager[Path]]:
    """A mount at a folder: `mounted(folder, "-t", "tmpfs", "tmpfs")`. The test is skipped where that is not allowed."""

    @contextlib.contextmanager
    def mount(folder: Path, *options: str) -> Iterator[Path]:
        folder.mkdir(exist_ok=True)
        try:
            done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"mounting is not allowed: {done.stderr.strip()}")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)

    return mount
