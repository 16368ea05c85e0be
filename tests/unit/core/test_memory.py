"""The environment of a process that trains: memory that was freed is there for the next tensor."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from rnnlm.memory import ENVIRONMENT

FAULTS = """
import resource, threading, torch
def work():
    before = 0
    for number in range(60):
        if number == 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(10 << 20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
worker = threading.Thread(target=work)  # as Ray runs a training
worker.start()
worker.join()
"""


def _plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in {*ENVIRONMENT, "THP_MEM_ALLOC_ENABLE"}}


def _faults(environment: dict[str, str]) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=_plain() | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc reads it")
def test_large_tensors_are_not_taken_from_the_kernel_again_and_again() -> None:
    assert _faults(ENVIRONMENT) < 100
    assert _faults({}) > 1_000  # or the environment is of no use any more


@pytest.mark.parametrize(
    ("module", "given", "lines"),
    [
        ("mine", {}, ["begins", "begins", f"goes on with {ENVIRONMENT['GLIBC_TUNABLES']}"]),
        ("mine", {"GLIBC_TUNABLES": "theirs"}, ["begins", "goes on with theirs"]),
        ("pytest", {}, ["begins", "goes on with None"]),
    ],
)
def test_a_command_that_trains_begins_anew_with_it(
    module: str, given: dict[str, str], lines: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "import os, sys\n"
        "from rnnlm import memory\n"
        "print('begins', flush=True)\n"
        f"memory.start_anew({module!r})\n"
        "assert sys.argv[1:] == ['an argument', '']\n"
        "print('goes on with', os.environ.get('GLIBC_TUNABLES'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mine", "an argument", ""],
        env=_plain() | given, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == lines
