"""How a process that trains gets memory, and what it keeps.

A training step makes and drops the same large tensors again and again. By default glibc takes each from the kernel and gives
it back, and the kernel clears it, page by page of 4 KiB, every time.
"""

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
