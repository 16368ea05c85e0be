"""Decoding here and apart: what a row does to its process, and what the process that asked learns of it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rnnlm import faults
from rnnlm.batch import here
from rnnlm.batch.apart import Apart, DiedError, NoProcessError
from rnnlm.batch.here import DEAF_EXIT_CODE, Here, TookTooLongError, time_limit
from rnnlm.decoding.config import DecodeConfig
from rnnlm.package import load_package

PACKAGE = Path(__file__).parents[2] / "golden" / "packages" / "format_1_translate"
DECODE = DecodeConfig(method="greedy", max_length=10)
TEXTS = ["one red cat", "two", "a long way down the road"]


def test_apart_is_as_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.POISON_VARIABLE, "kill:deadly")
    at_home = Here(load_package(PACKAGE), DECODE)
    with Apart(PACKAGE, DECODE, 60.0, 1) as apart:
        assert apart.count_tokens(TEXTS[2]) == at_home.count_tokens(TEXTS[2])
        assert apart.plan(TEXTS) == at_home.plan(TEXTS)
        assert apart.decode(TEXTS, TEXTS) == at_home.decode(TEXTS, TEXTS)
        assert apart.decode([_any(3)], ["3"]) == at_home.decode([_any(3)], ["3"])  # an error is told, word for word
        with pytest.raises(DiedError, match=r"^the process that decoded it was ended by SIGKILL$"):
            apart.decode(["one", "deadly"], ["1", "2"])
        assert apart.decode(TEXTS, TEXTS) == at_home.decode(TEXTS, TEXTS), "another process has taken its place"


def test_a_process_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.POISON_VARIABLE, "hang:endless")
    with Apart(PACKAGE, DECODE, 1.0, 1) as apart:
        with pytest.raises(DiedError, match=r"^decoding it took longer than 1 s$"):
            apart.decode(["endless"], ["1"])
        assert apart._process is None


def test_where_nothing_can_be_decoded_no_row_is_to_blame(tmp_path: Path) -> None:
    apart = Apart(tmp_path / "no package", DECODE, 60.0, 1)
    with pytest.raises(NoProcessError, match=r"whatever the row: it does not start .*no package"):
        apart.decode(["one"], ["1"])


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, sys, threading\nfrom pathlib import Path\nfrom rnnlm.batch.apart import Apart\n"
        "from rnnlm.decoding.config import DecodeConfig\n"
        "if __name__ == '__main__':\n"
        "    apart = Apart(Path(sys.argv[1]), DecodeConfig(), 60.0, 1)\n"
        "    apart.plan(['one'])\n"
        "    print(apart._process.pid, flush=True)\n"
        "    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()\n"
        "    apart.decode(['endless'], ['1'])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), str(PACKAGE)],
        env=os.environ | {faults.POISON_VARIABLE: "hang:endless"},
        stdout=subprocess.PIPE, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    child, deadline = int(done.stdout), time.monotonic() + 10
    while _lives(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    lives = _lives(child)
    if lives:
        os.kill(child, signal.SIGKILL)
    assert not lives


def test_what_takes_too_long_is_stopped() -> None:
    with pytest.raises(TookTooLongError), time_limit(0.05):
        time.sleep(10)
    with time_limit(10):
        pass
    with time_limit(0.01):
        pass
    time.sleep(0.05)  # the watch of the last one has gone, too


def test_what_hears_nothing_is_ended() -> None:
    script = (
        "import os\nfrom rnnlm import faults\nfrom rnnlm.batch import here\nhere.GRACE_S = 0.1\n"
        "with here.time_limit(0.1, lambda text: print(text, flush=True)):\n    faults.poison(['endless'])\n"
    )
    environment = os.environ | {faults.POISON_VARIABLE: "hang:endless"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True, check=False, timeout=60
    )
    assert done.returncode == DEAF_EXIT_CODE
    assert done.stdout.startswith("a batch takes longer than 0.1 s and hears no signal")


def test_in_another_thread_nobody_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    ended = threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(here, "GRACE_S", 0.0)
    monkeypatch.setattr(os, "_exit", end)

    def work() -> None:
        with time_limit(0.05):
            assert ended.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert codes == [DEAF_EXIT_CODE]


def test_errors_become_reasons() -> None:
    class Broken:
        tokenizer = None

        def plan(self, texts: Sequence[str], decode: DecodeConfig) -> Any:
            raise MemoryError("too much")

    broken = Here(_any(Broken()), DECODE)
    assert broken.plan(["one"]) == "decoding failed: MemoryError: too much"
    assert str(broken.count_tokens("one")).startswith("decoding failed: AttributeError")


def _lives(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def _any(value: object) -> Any:
    return value
