import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from rnnlm.errors import RnnlmError
from rnnlm.storage import Store
from rnnlm.tuning.ledger import LEDGER_FILE, Ledger, Trial


def test_a_new_ledger_is_empty(tmp_path: Path) -> None:
    ledger = Ledger(Store(str(tmp_path)))

    assert len(ledger) == 0
    assert ledger.trials == []
    assert ledger.get("x") is None
    assert ledger.best("loss") is None
    assert not (tmp_path / LEDGER_FILE).exists()


def test_every_change_is_in_the_store_at_once(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    ledger = Ledger(store)
    trial = Trial("b", 1, {"optim.lr": 0.1, "model.cell": "lstm"})
    ledger.put(trial)
    ledger.put(Trial("a", 0, {"optim.lr": 0.2}, "failed", error="diverged"))
    ledger.put(replace(trial, status="finished", metrics={"loss": 1.5}, steps=10, run_id="r", seconds=2.5))

    again = Ledger(store)

    assert [each.key for each in again.trials] == ["a", "b"]
    assert again.get("b") == Trial(
        "b", 1, {"optim.lr": 0.1, "model.cell": "lstm"}, "finished", {"loss": 1.5}, 10, "r", 2.5
    )
    assert again.get("a") == Trial("a", 0, {"optim.lr": 0.2}, "failed", error="diverged")


def test_the_file_has_a_json_line_for_each_trial(tmp_path: Path) -> None:
    ledger = Ledger(Store(str(tmp_path)))
    for number in range(3):
        ledger.put(Trial(f"key{number}", number, {"seed": number}))

    lines = (tmp_path / LEDGER_FILE).read_text().splitlines()

    assert [json.loads(line)["settings"] for line in lines] == [{"seed": 0}, {"seed": 1}, {"seed": 2}]


def test_only_an_open_trial_is_open() -> None:
    trial = Trial("a", 0, {})

    assert trial.is_open
    assert not any(replace(trial, status=status).is_open for status in ("finished", "stopped", "failed"))


def test_the_best_is_a_finished_trial_where_there_is_one(tmp_path: Path) -> None:
    ledger = Ledger(Store(str(tmp_path)))
    ledger.put(Trial("short", 0, {}, "stopped", {"loss": 1.0}))
    ledger.put(Trial("broken", 1, {}, "failed", {"loss": math.inf}))
    ledger.put(Trial("none", 2, {}, "finished"))
    assert ledger.best("loss") == ledger.get("short")

    ledger.put(Trial("long", 3, {}, "finished", {"loss": 3.0}))
    ledger.put(Trial("longer", 4, {}, "finished", {"loss": 2.0}))
    assert ledger.best("loss") == ledger.get("longer")


@pytest.mark.parametrize("line", ["not json", '{"key": "a"}', '{"key": "a", "number": 0, "settings": {}, "more": 1}'])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    ledger = Ledger(Store(str(tmp_path)))
    ledger.put(Trial("a", 0, {}))
    with (tmp_path / LEDGER_FILE).open("a") as stream:
        stream.write(line + "\n")

    with pytest.raises(RnnlmError, match=r"ledger\.jsonl, line 2: not a trial"):
        Ledger(Store(str(tmp_path)))
