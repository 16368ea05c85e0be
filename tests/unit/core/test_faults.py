import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rnnlm import faults


def test_each_file_of_the_folder_is_one_death_at_that_point(tmp_path: Path) -> None:
    script = "from rnnlm import faults; faults.point('store.write'); faults.point('record.write'); print('alive')"
    (tmp_path / "record.write").touch()
    environment = os.environ | {faults.AIM_VARIABLE: str(tmp_path)}

    first, second = (
        subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
        for _ in range(2)
    )

    assert (first.returncode, first.stdout) == (-signal.SIGKILL, "")
    assert (second.returncode, second.stdout) == (0, "alive\n")
    assert list(tmp_path.iterdir()) == []


def test_nothing_dies_where_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.AIM_VARIABLE, raising=False)
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    for name in faults.POINTS:
        faults.point(name)
