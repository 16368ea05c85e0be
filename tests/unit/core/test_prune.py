"""`prune`: what could go, and what never goes."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import prune as command
from rnnlm import artifacts
from rnnlm.artifacts import Record
from rnnlm.batch.lease import lease
from rnnlm.stages import prune
from rnnlm.stages.context import Surroundings
from rnnlm.storage import Store

NOW = time.time()
DAY = 86_400.0


class Shop:
    """A store with records of given ages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(str(folder))

    def record(self, stage: str, number: int, days: float, **values: Any) -> str:
        digest = f"{stage}{number}".ljust(20, "0")
        folder = artifacts.folder(self.store, "x", stage, digest)
        folder.write_bytes("data", b"d" * 1000)
        made = Record(stage, "x", digest, {}, values.pop("inputs", {}), **values)
        artifacts.write_record(folder, made)
        path = Path(folder.uri) / "artifact.json"
        value = json.loads(path.read_text())
        value["created"] = f"2020-01-{30 - int(days):02d}T00:00:00.000000+00:00"
        path.write_text(json.dumps(value))
        self.age(folder.uri, days)
        return digest

    def age(self, name: str | Path, days: float) -> None:
        top = self.folder / name
        for path in [top, *top.rglob("*")]:
            os.utime(path, (NOW - days * DAY, NOW - days * DAY))

    def found(self, keep: int = 1, older: float = 7.0, aliased: frozenset[str] = frozenset()) -> dict[str, str]:
        items = prune.superfluous(self.store, set(aliased), keep, older, NOW)
        return {item.name.removeprefix("experiments/x/"): item.kind for item in items}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def _name(stage: str, number: int) -> str:
    return f"{stage}-{f'{stage}{number}'.ljust(20, '0')[:16]}"


def test_superseded_records_go_but_for_what_the_kept_ones_were_made_from(shop: Shop) -> None:
    corpora = [shop.record("ingest", number, 20 - number) for number in range(3)]
    shop.record("train", 0, 12, inputs={"tokens": corpora[1]})
    shop.record("train", 1, 11, inputs={"tokens": corpora[0]})
    assert shop.found() == {_name("ingest", 1): "records", _name("train", 0): "records"}
    assert shop.found(keep=2) == {}
    assert shop.found(older=11.5) == {_name("ingest", 1): "records", _name("train", 0): "records"}
    assert shop.found(older=12.5) == {_name("ingest", 1): "records"}


def test_what_an_alias_or_an_output_refers_to_stays(shop: Shop) -> None:
    trained = [shop.record("train", number, 20 - number) for number in range(4)]
    for number in range(3):
        outputs = {"package_digest": f"model{number}", "train": trained[number]}
        shop.record("register", number, 15 - number, run_id=f"run{number}", outputs=outputs)
    shop.store.write_json("demo/out/run=abc/manifest.json", {"model": {"digest": "model1"}})
    shop.age("demo", 20)
    assert set(shop.found(aliased=frozenset({"run0"}))) == set()
    assert set(shop.found()) == {_name("register", 0), _name("train", 0)}


def test_unfinished_work_and_spare_checkpoints_and_logs_go_when_they_are_old(shop: Shop) -> None:
    digest = shop.record("train", 0, 1, files={"checkpoint": "checkpoints/step-2"})
    folder = artifacts.folder(shop.store, "x", "train", digest)
    for step in (1, 2, 3):
        folder.write_bytes(f"checkpoints/step-{step}/checkpoint.json", b"{}")
    shop.age(folder.uri, 9)
    for name, days in (("busy", 0.001), ("left", 9), ("leased", 9), ("working", 9)):
        shop.store.write_bytes(f"experiments/x/train-{name}/checkpoints/step-1/checkpoint.json", b"{}")
        shop.age(f"experiments/x/train-{name}", days)
    for name, days in (("old", 9), ("new", 1)):
        shop.store.write_bytes(f"logs/{name}.log", b"text")
        shop.age(f"logs/{name}.log", days)
    with (
        lease(shop.store.child("experiments/x/train-leased")),
        lease(shop.store, "experiments/x/train-working.lease.json"),
    ):
        found = shop.found()
    assert found == {
        f"{_name('train', 0)}/checkpoints/step-1": "checkpoints",
        f"{_name('train', 0)}/checkpoints/step-3": "checkpoints",
        "train-left": "unfinished",
        "logs/old.log": "logs",
    }
    assert "train-busy" not in shop.found(older=0)


def test_the_command_lists_and_deletes_only_on_request(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], last_line: Callable[[], Any]
) -> None:
    monkeypatch.setattr(prune, "aliased_runs", lambda where: set() if isinstance(where, Surroundings) else None)
    for number in range(2):
        shop.record("ingest", number, 20 - number)
    arguments = ["--store", str(shop.folder), "--keep-runs", "1"]
    assert command.main(arguments) == 0
    out = capfd.readouterr().out
    assert "records: 1, 1." in out
    assert "could go; --yes deletes it" in out
    assert (shop.folder / "experiments/x" / _name("ingest", 0)).exists()
    assert command.main([*arguments, "--yes", "--json"]) == 0
    assert last_line()["metrics"]["prune/items"] == 1
    assert not (shop.folder / "experiments/x" / _name("ingest", 0)).exists()
    assert (shop.folder / "experiments/x" / _name("ingest", 1)).exists()
    assert command.main(arguments) == 0
    assert "nothing could go" in capfd.readouterr().out
    assert command.main(["--store", str(shop.folder), "--keep-runs", "0"]) == 2
