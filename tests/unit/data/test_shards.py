import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnlm.data import shards
from rnnlm.data.ragged import Ragged
from rnnlm.data.shards import TokenWriter, read_manifest, read_tokens, write_tokens
from rnnlm.errors import DataError, RnnlmError
from rnnlm.storage import Store


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def pairs(count):
    source = Ragged.from_rows([[row] * (row % 7) for row in range(count)])
    target = Ragged.from_rows([[row, 1] * (row % 3) for row in range(count)])
    return {"source": source, "target": target}


def listed(columns):
    return {name: [column[row].tolist() for row in range(len(column))] for name, column in columns.items()}


def test_one_shard_stays_in_its_memory_map(store):
    columns = pairs(50)
    manifest = write_tokens(store, "train", columns, counts={"dropped": 3})
    tokens = read_tokens(store, "train")
    assert listed(tokens) == listed(columns)
    for column in tokens.values():
        assert not column.values.flags.owndata
        assert not column.values.flags.writeable
        assert column.values.dtype == np.int32
        assert column.offsets.dtype == np.int64
    assert manifest["rows"] == 50
    assert manifest["counts"] == {"dropped": 3}
    assert manifest["tokens"] == {name: column.num_tokens for name, column in columns.items()}
    assert read_manifest(store, "train") == manifest
    assert store.files("tokens/train") == sorted([manifest["shards"][0]["name"], "tokens/train/manifest.json"])


def test_path_is_read_like_a_store(store, tmp_path):
    write_tokens(store, "valid", pairs(5))
    assert listed(read_tokens(tmp_path, "valid")) == listed(pairs(5))


def test_many_shards_come_back_in_order(store):
    manifest = write_tokens(store, "train", pairs(100), shard_bytes=200)
    assert len(manifest["shards"]) > 5
    tokens = read_tokens(store, "train")
    assert listed(tokens) == listed(pairs(100))
    assert not any(row.flags.owndata for row in tokens["source"] if len(row))  # they are in the memory maps


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(50, 900))
def test_shards_do_not_depend_on_how_rows_were_appended(tmp_path_factory, sizes, shard_bytes):
    store = Store(str(tmp_path_factory.mktemp("store")))
    columns = pairs(sum(sizes))
    whole = write_tokens(store, "train", columns, shard_bytes=shard_bytes)
    writer = TokenWriter(store, "test", ["source", "target"], shard_bytes=shard_bytes)
    start = 0
    for size in sizes:
        writer.append({name: column.slice(start, start + size) for name, column in columns.items()})
        start += size
    parts = writer.close()
    assert [shard["sha256"] for shard in parts["shards"]] == [shard["sha256"] for shard in whole["shards"]]
    assert listed(read_tokens(store, "test")) == listed(columns)


def test_writing_again_gives_equal_bytes(store, tmp_path):
    first = write_tokens(store, "train", pairs(40), shard_bytes=100)
    second = write_tokens(Store(str(tmp_path / "other")), "train", pairs(40), shard_bytes=100)
    assert first == second


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
def test_empty_split_and_empty_rows(store, rows):
    write_tokens(store, "gate", {"text": Ragged.from_rows(rows)})
    assert listed(read_tokens(store, "gate")) == {"text": rows}


def test_nothing_is_visible_before_close(store):
    writer = TokenWriter(store, "train", ["text"], shard_bytes=8)
    writer.append({"text": Ragged.from_rows([[1, 2, 3]])})
    with pytest.raises(RnnlmError, match=r"tokens/train/manifest\.json"):
        read_tokens(store, "train")


def test_missing_shard_is_named(store):
    name = write_tokens(store, "train", pairs(9))["shards"][0]["name"]
    store.delete(name)
    with pytest.raises(RnnlmError, match=f"{name}.*missing"):
        read_tokens(store, "train")


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:200] + b"\xff" + data[201:]])
def test_damaged_shard_is_named(store, damage):
    name = write_tokens(store, "train", pairs(9))["shards"][0]["name"]
    store.write_bytes(name, damage(store.read_bytes(name)))
    with pytest.raises(
        RnnlmError,
        match=f"{name}: this shard of tokens is not what was written; .*tokenize_corpus EXPERIMENT.toml --force",
    ):
        read_tokens(store, "train")


def test_unknown_format_is_refused(store):
    manifest = write_tokens(store, "train", pairs(1))
    store.write_bytes("tokens/train/manifest.json", json.dumps({**manifest, "format": 99}).encode())
    with pytest.raises(RnnlmError, match="format 99"):
        read_manifest(store, "train")


def test_uneven_columns_are_refused(store):
    writer = TokenWriter(store, "train", ["source", "target"])
    columns = pairs(3)
    with pytest.raises(ValueError, match="source, target"):
        writer.append({"source": columns["source"]})
    with pytest.raises(ValueError, match="source, target"):
        writer.append({"source": columns["source"], "target": columns["target"].slice(0, 2)})


def test_too_long_document_is_refused(store, monkeypatch):
    monkeypatch.setattr(shards, "_MOST_TOKENS", 10)
    with pytest.raises(DataError, match="11 tokens"):
        write_tokens(store, "train", {"text": Ragged.from_rows([[1] * 11])})
