"""Decoding in this process, with a limit on the time that a batch may take."""

import contextlib
import os
import signal
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from rnnlm import faults
from rnnlm.decoding.config import DecodeConfig

if TYPE_CHECKING:
    from rnnlm.decoding.generator import Generator, Output

Decoded: TypeAlias = "list[Output] | str"
"""Outputs, or the reason why there are none."""
Made = TypeVar("Made")
Tell = Callable[[str], None]
"""Told what happened, for people."""
DEAF_EXIT_CODE = 1
GRACE_S = 10.0
"""Seconds that a process has to hear that it took too long, before it is ended."""
_SIGNAL = signal.SIGUSR1


class TookTooLongError(Exception):
    """A batch took longer than it may."""


def say_on_stderr(text: str) -> None:
    """One line that no buffer holds back."""
    os.write(2, f"{text}\n".encode())


class Here:
    """Decodes in this process.

    Args:
        generator: the model.
        decode: decoding settings.
        limit_s: seconds that a batch may take; None: any number.
        tell: told why the process is ended, where it has to be.
    """

    def __init__(
        self, generator: "Generator", decode: DecodeConfig, limit_s: float | None = None, tell: Tell = say_on_stderr
    ) -> None:
        self._generator = generator
        self._decode = decode
        self._limit_s = limit_s
        self._tell = tell

    def count_tokens(self, text: str) -> int | str:
        """Tokens of a text, or why they cannot be counted.

        Raises:
            TookTooLongError: the limit was crossed.
        """
        return self._limited(lambda: len(self._generator.tokenizer.encode([text])[0]))

    def plan(self, texts: Sequence[str]) -> list[list[int]] | str:
        """The batches in which texts are decoded, as their places, or why there are none; raises like `count_tokens`."""
        return self._limited(lambda: self._generator.plan(texts, self._decode))

    def decode(self, texts: Sequence[str], keys: Sequence[str]) -> Decoded:
        """Outputs for texts, or why there are none; raises like `count_tokens`."""

        def generate() -> "list[Output]":
            faults.poison(texts)
            return self._generator.generate(texts, self._decode, keys=keys)

        return self._limited(generate)

    def _limited(self, call: Callable[[], Made]) -> Made | str:
        try:
            with time_limit(self._limit_s, self._tell):
                return call()
        except TookTooLongError:
            raise
        except Exception as error:
            return f"decoding failed: {type(error).__name__}: {str(error)[:200]}"


@contextlib.contextmanager
def time_limit(seconds: float | None, tell: Tell = say_on_stderr) -> Iterator[None]:
    """Raise in the main thread once the block has taken so many seconds.

    A thread that is deep in foreign code hears nothing, and no other thread than the main one can be told at all: there the
    process is ended. What it has worked on is marked in the store.

    Raises:
        TookTooLongError: it took longer.
    """
    if seconds is None:
        yield
        return
    over = threading.Event()
    told = threading.current_thread() is threading.main_thread()

    def raise_it(_number: int, _frame: types.FrameType | None) -> None:
        if not over.is_set():
            over.set()
            raise TookTooLongError

    def ring() -> None:
        if told and not over.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
        if not over.wait(GRACE_S):
            tell(
                f"a batch takes longer than {seconds:g} s and hears no signal: this process ends. Run the command again"
            )
            os._exit(DEAF_EXIT_CODE)

    if told:
        signal.signal(_SIGNAL, raise_it)  # stays, as a late signal without a handler would end the process
    watch = threading.Timer(seconds, ring)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.cancel()
