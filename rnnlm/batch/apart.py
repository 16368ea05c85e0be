"""Decoding in a process of its own, which may die or hang without taking the job along.

It costs the seconds that a process takes to start, so that it is done only for shards that an earlier attempt did not come
to the end of.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

from rnnlm.batch.here import Decoded, Here
from rnnlm.decoding.config import DecodeConfig
from rnnlm.errors import RnnlmError

START_TIMEOUT_S = 300.0
HARMLESS = "a"
"""A text that is decoded first: where that fails, it is not the rows that are to blame."""


class DiedError(Exception):
    """The process died or was too slow; the text says how, as the reason of a row."""


class NoProcessError(RnnlmError):
    """A process that decodes does not get as far as decoding."""


class Apart:
    """Does what `Here` does in a child process, and starts another one where that dies.

    Args:
        package: folder of the model package.
        decode: decoding settings.
        limit_s: seconds after which the child is given up.
        threads: of the child; the last digits of a score depend on them.
    """

    def __init__(self, package: Path, decode: DecodeConfig, limit_s: float, threads: int) -> None:
        self._arguments = (str(package), decode, threads)
        self._limit_s = limit_s
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def count_tokens(self, text: str) -> int | str:
        """As `Here.count_tokens`.

        Raises:
            DiedError: the process did not live through it.
        """
        made: int | str = self._ask("count_tokens", text)
        return made

    def plan(self, texts: Sequence[str]) -> list[list[int]] | str:
        """As `Here.plan`; raises like `count_tokens`."""
        made: list[list[int]] | str = self._ask("plan", list(texts))
        return made

    def decode(self, texts: Sequence[str], keys: Sequence[str]) -> Decoded:
        """As `Here.decode`; raises like `count_tokens`."""
        made: Decoded = self._ask("decode", list(texts), list(keys))
        return made

    def _ask(self, what: str, *arguments: Any) -> Any:
        connection = self._connection or self._start()
        try:
            connection.send((what, arguments))
            if not connection.poll(self._limit_s):
                self._end()
                raise DiedError(f"decoding it took longer than {self._limit_s:g} s")
            return connection.recv()
        except (EOFError, OSError):
            raise DiedError(f"the process that decoded it {_ending(self._end())}") from None

    def _start(self) -> Connection:
        """Start the child and wait until it has decoded something harmless.

        Raises:
            NoProcessError: it has not.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, *self._arguments), daemon=True)
        self._process.start()
        other.close()
        try:
            problem = self._connection.recv() if self._connection.poll(START_TIMEOUT_S) else "does not answer"
        except (EOFError, OSError):
            problem = _ending(self._end())
        if problem:
            self._end()
            raise NoProcessError(f"a process for decoding cannot work here, whatever the row: it {problem}")
        return self._connection

    def _end(self) -> int | None:
        """Kill the child where it still lives; returns its exit code."""
        if self._process is None or self._connection is None:
            return None
        self._connection.close()
        self._process.join(1)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        code = self._process.exitcode
        self._process = self._connection = None
        return code


def _ending(code: int | None) -> str:
    """How a process ended, in words."""
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _serve(connection: Connection, package: str, decode: DecodeConfig, threads: int) -> None:
    """In the child: load the model, then answer until nobody asks any more."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    try:
        import torch

        from rnnlm.package import load_package

        torch.set_num_threads(threads)
        generator = load_package(Path(package))
        short = decode.model_copy(update={"max_length": 8, "min_length": 0})
        made = Here(generator, short).decode([HARMLESS], [HARMLESS])
        connection.send(made if isinstance(made, str) else "")
        server = Here(generator, decode)
    except Exception as error:
        connection.send(f"does not start ({type(error).__name__}: {error})")
        return
    with contextlib.suppress(EOFError, OSError):
        while True:
            what, arguments = connection.recv()
            connection.send(getattr(server, what)(*arguments))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
