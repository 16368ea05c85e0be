"""The environment of a process that trains: memory that was freed is there for the next tensor."""

import os
import platform
import subprocess
import sys

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


def _faults(environment: dict[str, str]) -> int:
    plain = {name: value for name, value in os.environ.items() if name not in {*ENVIRONMENT, "THP_MEM_ALLOC_ENABLE"}}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=plain | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc reads it")
def test_large_tensors_are_not_taken_from_the_kernel_again_and_again() -> None:
    assert _faults(ENVIRONMENT) < 100
    assert _faults({}) > 1_000  # or the environment is of no use any more
