"""How a process that trains or decodes gets memory, and what it keeps.

A training step makes and drops the same large tensors again and again. By default glibc takes each from the kernel and gives
it back, and the kernel clears it, page by page of 4 KiB, every time.
"""

import os
import sys

ENVIRONMENT = {
    "GLIBC_TUNABLES": ":".join(
        f"glibc.malloc.{name}={value}"
        for name, value in {
            "hugetlb": 1,  # transparent huge pages, where the kernel has them on request
            "mmap_max": 0,  # no mapping of its own for a large block
            "trim_threshold": 1 << 40,  # what was freed stays with the process
            "top_pad": 64 << 20,
            "arena_max": 1,  # other arenas, which other threads than the first get, are small ones
        }.items()
    )
}
"""Has to be there when the process starts. Other C libraries, and a glibc that does not know a name, ignore it."""


def start_anew(module: str) -> None:
    """Start this process anew with `ENVIRONMENT`, where it is `python -m MODULE` and nobody has set one; else do nothing.

    For the beginning of a process: nothing of it is left but its number and its open files.
    """
    if module in sys.orig_argv and not ENVIRONMENT.keys() & os.environ.keys():
        os.execve(sys.executable, sys.orig_argv, os.environ | ENVIRONMENT)
