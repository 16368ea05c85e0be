import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rnnlm import console as console_module
from rnnlm.console import Console


def test_our_lines_go_out_and_the_rest_goes_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "stage.log"
    code = (
        "import os, subprocess, sys\n"
        "from pathlib import Path\n"
        "from rnnlm.console import Console\n"
        f"with Console(Path({str(log)!r})) as console:\n"
        "    console.say('ours')\n"
        "    print('from python')\n"
        "    print('to stderr', file=sys.stderr)\n"
        "    subprocess.run(['echo', 'from a child'], check=True)\n"
        "print('after')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["ours", "after"]
    assert result.stderr == ""
    logged = log.read_text()
    for line in ("ours", "from python", "to stderr", "from a child"):
        assert line in logged
    assert "after" not in logged


def test_tables_put_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table(("name", "value"), [("bleu", 91.234), ("rows", 12_345.0), ("n", 5)])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["  name   value", "  ----  ------", "  bleu   91.23", "  rows  12,345", "  n          5"]


def test_progress_without_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console()
    with console.progress("training", 10) as progress:
        progress.update(1)
        assert capsys.readouterr().out == ""
        monkeypatch.setattr(console_module, "PLAIN_INTERVAL_S", 0.0)
        progress.update(5, note="loss 2.00")
        progress.update(7, total=70)
    assert [line.split(" after ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "training: 50%",
        "training: 10%",
    ]


def _shown(leader: int) -> str:
    """All that was written to a terminal that is closed by now: a read may give only the first part of it."""
    parts = []
    with os.fdopen(leader, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # EIO is the end of it
        while part := terminal.read(65_536):
            parts.append(part)
    return b"".join(parts).decode()


def test_progress_in_a_terminal_is_a_bar(tmp_path: Path) -> None:
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as terminal:
        console = Console()
        console.out = terminal
        with console.progress("training", 4) as progress:
            progress.update(2, note="halfway")
            time.sleep(0.4)
    shown = _shown(leader)
    assert "training" in shown
    assert "2/4" in shown
    assert "halfway" in shown


def test_works_at_the_same_time_have_a_bar_each_and_lines_go_above_them() -> None:
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as terminal:
        console = Console()
        console.out = terminal
        with console.progress("training", 4) as first, console.progress("searching", 8) as second:
            first.update(2)
            second.update(3)
            console.say("a [line] of ours :smile:")
            time.sleep(0.4)
        console.say("after")
    shown = _shown(leader)
    last_bars = shown[shown.rindex("a [line] of ours :smile:") :]
    assert "2/4" in last_bars
    assert "3/8" in last_bars
    assert shown.splitlines()[-1].endswith("after")


def test_last_log_lines_prefer_errors(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("fine\nValueError: broken\nfine again\n")
    assert Console(log).last_log_lines() == ["ValueError: broken"]
    log.write_text("one\ntwo\n")
    assert Console(log).last_log_lines(1) == ["two"]
    assert Console().last_log_lines() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_log_on_a_full_disk_stops_nothing() -> None:
    code = (
        "from pathlib import Path\n"
        "from rnnlm.console import Console\n"
        "with Console(Path('/dev/full')) as console:\n"
        "    console.say('ours')\n"
        "    console.keep('for the log')\n"
        "print('after')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["ours", "after"]
