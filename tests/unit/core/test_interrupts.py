import os
import signal
import subprocess
import sys
import textwrap

import pytest

from rnnlm.interrupts import Interrupted, Interrupts


def test_the_first_signal_raises_where_nothing_has_to_be_saved() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.exit_code == 143
        assert interrupts.stop_requested()
    assert signal.getsignal(signal.SIGTERM) == before


def test_deferred_work_finishes_first() -> None:
    done = []

    def work() -> None:
        with Interrupts() as interrupts, interrupts.deferred() as stop_requested:
            assert not stop_requested()
            os.kill(os.getpid(), signal.SIGINT)
            assert stop_requested()
            done.append("saved")

    with pytest.raises(Interrupted) as caught:
        work()
    assert done == ["saved"]
    assert caught.value.exit_code == 130


def test_deferred_work_without_a_signal_just_ends() -> None:
    with Interrupts() as interrupts, interrupts.deferred() as stop_requested:
        pass
    assert not stop_requested()


@pytest.mark.parametrize("grace", ["second signal", "too slow"])
def test_the_process_ends_the_hard_way(grace: str) -> None:
    code = textwrap.dedent(f"""
        import os, signal, time
        from rnnlm import interrupts
        interrupts.GRACE_S = 0.2 if {grace == "too slow"} else 60
        with interrupts.Interrupts(lambda: print("last words", flush=True)) as i, i.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            if not {grace == "too slow"}:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(20)
    """)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=15, check=False)
    assert result.returncode == 130
    assert result.stdout == "last words\n"


def test_work_of_another_thread_goes_no_further_once_asked() -> None:
    interrupts = Interrupts()
    interrupts.check()
    interrupts.requested = signal.SIGTERM
    with pytest.raises(Interrupted) as stopped:
        interrupts.check()
    assert stopped.value.exit_code == 143
