"""Readers of everything that may lie about in a store or come from a user, fed with damaged content.

Each may do its work or raise one of our errors, never anything else; rows are never lost; nothing is executed.
"""

import contextlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rnnlm import artifacts, experiment
from rnnlm.artifacts import Record
from rnnlm.batch import inputs, job
from rnnlm.batch.config import BatchConfig
from rnnlm.data import corpus, shards
from rnnlm.data.ragged import Ragged
from rnnlm.decoding.config import DecodeConfig
from rnnlm.errors import RnnlmError
from rnnlm.package import load_package
from rnnlm.storage import Store
from rnnlm.text.tokenizer import Tokenizer
from rnnlm.training.checkpoint import MANIFEST, newest_valid, read_history, read_state, read_weights
from rnnlm.tuning.ledger import LEDGER_FILE, Ledger, Trial

PACKAGE = Path(__file__).parents[1] / "golden" / "packages" / "format_1_translate"
BATCH_JOB = job.Job(
    job.ModelIdentity("d", "demo", "1"), ({"name": "a.txt", "sha256": "0", "rows": 1},), DecodeConfig(), BatchConfig()
)
often = settings(
    max_examples=150 if os.environ.get("RNNLM_LONG_FAULTS") else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

edits = st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=4), st.integers(0, 6)), min_size=1, max_size=4)
"""Where bytes are replaced, by what, and how many go."""
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.just(2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def damaged(content: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
    for place, new, gone in changes:
        at = place % (len(content) + 1)
        content = content[:at] + new + content[at + gone :]
    return content


def ours(read: Callable[[], Any]) -> None:
    """It works, or raises one of our errors."""
    with contextlib.suppress(RnnlmError):
        read()


def with_value(tree: Any, place: int, value: Any) -> Any:
    """A JSON tree with one of its nodes replaced."""
    if isinstance(tree, Mapping) and tree and place % 3:
        keys = sorted(tree)
        key = keys[place % len(keys)]
        return {**tree, key: with_value(tree[key], place // 3, value)}
    if isinstance(tree, list) and tree and place % 3:
        at = place % len(tree)
        return [*tree[:at], with_value(tree[at], place // 3, value), *tree[at + 1 :]]
    return value


TABLES = {
    "text.txt": b"one line\n\nanother line\nlast",
    "table.csv": b'source,target\na,b\n"c, d","e\nf"\n',
    "table.tsv": b"source\ttarget\na\tb\nc\td\n",
    "rows.jsonl": b'{"source": "a", "target": "b"}\n{"source": "c", "target": {"x": 1}}\n',
}


@pytest.mark.parametrize("name", sorted(TABLES))
@often
@given(changes=edits)
def test_input_files(name: str, changes: list[tuple[int, bytes, int]], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(damaged(TABLES[name], changes))

    def read() -> None:
        taken = inputs.snapshot([name], tmp_path, BatchConfig())
        rows = [row for file in taken.files for row in inputs.read_rows(file, BatchConfig())]
        assert len(rows) == taken.num_rows

    ours(read)


@often
@given(changes=edits)
def test_parquet_files(changes: list[tuple[int, bytes, int]], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"source": ["a", "b"], "target": ["c", "d"]}), path)
    path.write_bytes(damaged(path.read_bytes(), changes))

    def read() -> None:
        taken = inputs.snapshot([path.name], tmp_path, BatchConfig())
        assert sum(1 for file in taken.files for _ in inputs.read_rows(file, BatchConfig())) == taken.num_rows

    ours(read)


@often
@given(changes=edits)
def test_experiment_files(changes: list[tuple[int, bytes, int]], tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(damaged(b'task = "text"\ndata.train = "a.txt"\n[optim]\nlr = 1e-3\n[tune]\ntrials = 0\n', changes))
    ours(lambda: experiment.load(path))


@often
@given(override=st.text(max_size=30), value=json_values)
def test_overrides(override: str, value: Any) -> None:
    tree = {"name": "x", "task": "text", "data": {"train": "a.txt"}}
    ours(lambda: experiment.build(tree, [override]))
    ours(lambda: experiment.build(tree, [f"optim.lr={json.dumps(value)}", f"data.train={json.dumps(value)}"]))


@often
@given(changes=edits)
def test_tokenizer_files(changes: list[tuple[int, bytes, int]], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(damaged((PACKAGE / "tokenizer.json").read_bytes(), changes))
    ours(lambda: Tokenizer.from_file(tmp_path / "tokenizer.json"))


@often
@given(place=st.integers(0, 500), value=json_values)
def test_tokenizer_files_that_are_json(place: int, value: Any, tmp_path: Path) -> None:
    tree = json.loads((PACKAGE / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps(with_value(tree, place, value)))
    ours(lambda: Tokenizer.from_file(tmp_path / "tokenizer.json"))


@often
@given(name=st.sampled_from(["package.json", "golden.json"]), place=st.integers(0, 500), value=json_values)
def test_packages(name: str, place: int, value: Any, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(PACKAGE, folder, dirs_exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(with_value(json.loads(path.read_bytes()), place, value)))
    ours(lambda: load_package(folder))


def _checkpoint(folder: Path, state: Any) -> None:
    """A checkpoint whose manifest fits, whatever stands in its state."""
    import safetensors.torch
    import torch

    folder.mkdir(exist_ok=True)
    (folder / "state.json").write_text(json.dumps(state))
    safetensors.torch.save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    safetensors.torch.save_file({"step": torch.zeros(2)}, folder / "history.safetensors")
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}
    known = {name: {"bytes": len(data), "sha256": sha256(data).hexdigest()} for name, data in files.items()}
    (folder / MANIFEST).write_text(json.dumps({"format": 1, "files": known}))


def _read_checkpoint(folder: Path) -> None:
    for read in (read_state, read_weights, read_history):
        ours(lambda read=read: read(folder))
    ours(lambda: newest_valid([folder]))


@often
@given(place=st.integers(0, 100), value=json_values)
def test_states_of_checkpoints(place: int, value: Any, tmp_path: Path) -> None:
    _checkpoint(tmp_path / "step", with_value({"format": 1, "state": {"step": 3}, "seed": 0}, place, value))
    _read_checkpoint(tmp_path / "step")


@often
@given(name=st.sampled_from([MANIFEST, "state.json", "model.safetensors", "history.safetensors"]), changes=edits)
def test_damaged_checkpoints(name: str, changes: list[tuple[int, bytes, int]], tmp_path: Path) -> None:
    folder = tmp_path / "step"
    _checkpoint(folder, {"format": 1, "state": {"step": 3}, "seed": 0})
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(damaged(whole, changes))
    _read_checkpoint(folder)
    if (folder / name).read_bytes() != whole and name != MANIFEST:
        assert newest_valid([folder]) is None


@often
@given(place=st.integers(0, 300), value=json_values)
def test_records_and_manifests(place: int, value: Any, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    record = artifacts.write_record(store.child("r"), Record("train", "x", "d" * 20, {"a": 1}, {"tokens": "t"}))
    tree = store.read_json("r/artifact.json")
    assert record.stage == "train"
    store.write_json("r/artifact.json", with_value(tree, place, value))
    ours(lambda: artifacts.read_record(store.child("r")))

    shards.write_tokens(store, "train", {"text": Ragged.from_rows([[3, 4, 1]])})
    store.write_json(
        "tokens/train/manifest.json", with_value(store.read_json("tokens/train/manifest.json"), place, value)
    )
    ours(lambda: shards.read_tokens(store, "train"))

    store.write_json(
        "corpus.json", with_value({"format": corpus.FORMAT, "written": {"train": {"files": []}}}, place, value)
    )
    ours(lambda: corpus.read_manifest(store))
    ours(lambda: corpus.split_files(store, "train"))

    output = {"format": 1, "parts": [{"file": "part-00000.parquet", "rows": 1, "sha256": "0"}]}
    store.write_json("run/manifest.json", with_value(output, place, value))
    ours(lambda: list(job.read_rows(store.child("run"))))
    store.write_json("run/ledger/part-00000.json", with_value({"name": "part-00000", "rows": 1}, place, value))
    ours(lambda: job.finished(store.child("run"), BATCH_JOB))


@often
@given(changes=edits)
def test_ledgers_of_searches(changes: list[tuple[int, bytes, int]], tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.delete(LEDGER_FILE)
    ledger = Ledger(store)
    for number in range(3):
        ledger.put(Trial(f"k{number}", number, {"optim.lr": 0.1}, "finished", {"valid/perplexity": 3.0}))
    store.write_bytes(LEDGER_FILE, damaged(store.read_bytes(LEDGER_FILE), changes))
    ours(lambda: Ledger(store).best("valid/perplexity"))


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "executed"))


def test_a_pickle_in_the_place_of_a_file_is_never_executed(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    bomb = pickle.dumps(Bomb(target))
    pickle.loads(bomb)
    assert target.exists(), "the bomb works"
    target.unlink()

    folder = tmp_path / "step"
    for name in ("model.safetensors", "state.json", MANIFEST, "history.safetensors"):
        _checkpoint(folder, {"format": 1, "state": {"step": 3}, "seed": 0})
        (folder / name).write_bytes(bomb)
        if name != MANIFEST:
            known = json.loads((folder / MANIFEST).read_text())
            known["files"][name] = {"bytes": len(bomb), "sha256": sha256(bomb).hexdigest()}
            (folder / MANIFEST).write_text(json.dumps(known))
        _read_checkpoint(folder)
    for name in ("package.json", "model.safetensors", "tokenizer.json", "golden.json"):
        package = tmp_path / f"package-{name}"
        shutil.copytree(PACKAGE, package)
        (package / name).write_bytes(bomb)
        if name != "package.json":
            info = json.loads((package / "package.json").read_bytes())
            info["files"][name] = sha256(bomb).hexdigest()
            (package / "package.json").write_text(json.dumps(info))
        ours(lambda package=package: load_package(package))
    store = Store(str(tmp_path / "store"))
    for name, read in (
        (LEDGER_FILE, lambda: Ledger(store)),
        ("artifact.json", lambda: artifacts.read_record(store)),
        (job.MANIFEST_FILE, lambda: job.manifest(store)),
        ("ledger/part-00000.json", lambda: job.finished(store, BATCH_JOB)),
    ):
        store.write_bytes(name, bomb)
        ours(read)
    assert not target.exists()
