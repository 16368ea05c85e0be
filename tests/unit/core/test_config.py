from typing import Annotated, Any, Self

import pytest
from pydantic import Field, model_validator

from rnnlm import experiment
from rnnlm.config import Config, apply_overrides, digest, merge, read_toml
from rnnlm.errors import ConfigError, UsageError

TEXT = {"name": "x", "task": "text", "data": {"train": "a.txt"}}
LR = 'optim.lr: should be greater than 0 (got "-1")'


def problems(values: dict[str, Any], *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        experiment.build(values, overrides)
    return list(caught.value.problems)


def test_all_mistakes_come_at_once_with_path_value_and_what_is_allowed() -> None:
    found = problems(TEXT, "optim.lr=-1", "optim.lrr=3", "model.cell=gru9", "train.lanes=many", "modle.x=1")
    assert 'optim.lr: should be greater than 0 (got "-1")' in found
    assert "optim.lrr: unknown key; did you mean 'lr'?" in found
    cells = "'elman', 'gru', 'lstm', 'mingru', 'minlstm' or 'qrnn'"
    assert f'model.cell: should be {cells} (got "gru9")' in found
    assert any(line.startswith("train.lanes: should be a valid integer") for line in found)
    assert "modle: unknown key; did you mean 'model'?" in found
    assert len(found) == 5


def test_an_unknown_key_without_a_near_one_lists_what_is_allowed() -> None:
    (line,) = problems(TEXT, "optim.zzzzzz=1")
    assert line.startswith("optim.zzzzzz: unknown key; allowed: ")
    assert "weight_decay" in line


def test_a_key_of_another_kind_of_model_is_not_what_was_meant() -> None:
    (line,) = problems(TEXT, "model.dropout=0.2")
    assert line == "model.dropout: unknown key; did you mean 'input_dropout'?"


def test_a_wrong_value_for_a_union_is_one_line() -> None:
    (line,) = problems({**TEXT, "data": {"train": 5}})
    assert line.startswith("data.train: should be")
    assert line.endswith("(got 5)")


def test_aliased_section_is_written_by_its_alias() -> None:
    assert experiment.build(TEXT, ["register.model_name=mine"]).model_name == "mine"
    (line,) = problems(TEXT, "register.model_nam=mine")
    assert line == "register.model_nam: unknown key; did you mean 'model_name'?"


def test_missing_and_cross_field_mistakes() -> None:
    assert problems({"name": "x", "task": "text"}) == ["data: is required"]
    assert problems({"name": "x"}) == ["task: is required"]
    assert problems({"name": "x", "task": "sing"})[0].startswith("task: should be 'text', 'translate' or 'summarize'")
    assert "exactly one of data.train, data.hub and data.demo" in problems(TEXT, "data.hub=name")[0]
    assert problems(TEXT, "model.kind=seq2seq")[0].startswith("model.kind: task 'text' needs 'language_model'")
    assert problems(TEXT, "tune.trials=3")[0].startswith("tune.space: is required")
    assert (
        "data.valid and data.test go with data.train"
        in problems({"name": "x", "task": "text", "data": {"demo": "python_docs", "valid": "v.txt"}})[0]
    )
    pairs = {"name": "x", "task": "translate", "data": {"train": "a.tsv"}}
    assert "copying needs attention" in problems(pairs, "model.attention=none")[0]
    assert "softmax_cutoffs" in problems(TEXT, "model.softmax_cutoffs=[5, 3]")[0]
    assert "model.softmax_cutoffs" in problems(TEXT, "train.softmax_samples=9", "model.softmax_cutoffs=[5]")[0]
    assert "ema_decay" in problems(TEXT, "optim.ema_decay=0.9", "optim.asgd_patience=3")[0]
    assert "new weights cannot be frozen" in problems(TEXT, 'init.freeze=["output"]')[0]
    assert "no encoder" in problems(TEXT, "init.from=models:/x/1", 'init.freeze=["encoder"]')[0]


def test_a_rule_between_fields_is_told_with_the_whole_path() -> None:
    assert problems(TEXT, "optim.ema_decay=0.9", "optim.asgd_patience=3")[0].startswith("optim.asgd_patience: excludes")
    assert problems(TEXT, 'init.freeze=["output"]')[0].startswith("init.freeze: new weights")
    assert problems(TEXT, "model.kind=transformer", "model.width=30")[0].startswith("model.width: should be a multiple")
    assert problems(TEXT, "data.hub=name")[0].startswith("data: exactly one of data.train,")
    (line,) = problems(TEXT, 'tune.space={"optim.lr" = {kind = "uniform", low = 2, high = 1}}')
    assert line == 'tune.space."optim.lr".low: should be less than high (got 2.0 and 1.0)'


def test_a_transformer_takes_the_place_of_either_kind_of_model() -> None:
    text = experiment.build(TEXT, ["model.kind=transformer", "model.width=64"])
    assert (text.model.kind, text.model.depth) == ("transformer", 4)
    pairs = {"name": "x", "task": "translate", "data": {"train": "a.tsv"}}
    built = experiment.build({**pairs, "model": {"kind": "transformer", "num_layers": 2}})
    assert (built.model.depth, built.model.copy_source) == (6, True)  # type: ignore[union-attr]
    assert "model.encoder_layers" in problems(TEXT, "model.kind=transformer", "model.encoder_layers=2")[0]
    assert "model.encoder_layers" in problems(pairs, "model.kind=transformer", "model.encoder_layers=0")[0]
    assert "multiple of" in problems(TEXT, "model.kind=transformer", "model.width=30")[0]


def test_a_value_is_read_by_the_declared_type() -> None:
    built = experiment.build(
        TEXT, ["optim.lr=3e-4", "train.max_steps=12", "model.tie_embeddings=false", 'data.train=["a", "b"]', "name=5"]
    )
    assert built.optim.lr == 3e-4
    assert built.train.max_steps == 12
    assert built.model.tie_embeddings is False  # type: ignore[union-attr]
    assert built.data.train == ("a", "b")
    assert built.name == "5"


def test_none_unsets_an_optional_field_only() -> None:
    assert experiment.build(TEXT, ["optim.clip_grad_norm=none"]).optim.clip_grad_norm is None
    assert problems(TEXT, "optim.lr=none")[0].startswith("optim.lr: ")


def test_aligned_files_replace_a_plain_path() -> None:
    built = experiment.build(
        {"name": "x", "task": "translate", "data": {"train": "a.tsv"}}, ["data.train.source=a", "data.train.target=b"]
    )
    assert built.data.train.source == "a"  # type: ignore[union-attr]
    assert problems(TEXT, "data.train.source=a") == ["data.train.target: is required"]


def test_an_override_without_an_equals_sign() -> None:
    assert problems(TEXT, "optim.lr") == ["optim.lr: an override is written PATH=VALUE"]


def test_a_broken_array_is_reported_as_the_value_it_is() -> None:
    assert experiment.build(TEXT, ["data.train=[oops"]).data.train == "[oops"


@pytest.mark.parametrize("glob", ["[0-9]*.txt", "[0-9]*.[ch]", "[a-c]*[0-9]"])
def test_a_glob_that_begins_with_a_bracket_is_no_array(glob: str) -> None:
    assert experiment.build(TEXT, [f"data.train={glob}"]).data.train == glob


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("data.train=[a.txt,b.txt]", """'data.train=["a.txt", "b.txt"]'"""),
        ("data.train=[part[0-9].txt, b c.txt]", """'data.train=["part[0-9].txt", "b c.txt"]'"""),
        ("init.freeze=[output]", """'init.freeze=["output"]'"""),
        ("model.softmax_cutoffs=[5,six]", """'model.softmax_cutoffs=[5, "six"]'"""),
    ],
)
def test_an_array_whose_quotes_the_shell_took(given: str, written: str) -> None:
    path, _, value = given.partition("=")
    said = f'{path}: is no TOML array; a shell takes quotes away, so write {written} (got "{value}")'
    assert problems(TEXT, given, "optim.lr=-1") == [said, LR]


def test_an_array_without_quotes_below_a_union() -> None:
    pairs = {"name": "x", "task": "translate", "data": {"train": "a.tsv"}}
    (line,) = problems(pairs, "data.train.source=[a,b]", "data.train.target=c")
    assert line.startswith("data.train.source: is no TOML array; ")


def test_merge_replaces_a_table_of_another_kind() -> None:
    base = {"model": {"kind": "a", "size": 1}, "train": {"x": 1, "y": 2}}
    assert merge(base, {"model": {"kind": "b"}, "train": {"y": 3}}) == {
        "model": {"kind": "b"},
        "train": {"x": 1, "y": 3},
    }
    assert merge(base, {"model": {"kind": "a", "depth": 2}})["model"] == {"kind": "a", "size": 1, "depth": 2}


def test_digest_ignores_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_toml_errors_name_the_place(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="no such experiment file"):
        read_toml(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("a = \n")
    with pytest.raises(UsageError, match=r"not valid TOML.*line 1"):
        read_toml(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read as text"):
        read_toml(tmp_path / "binary.toml")


def test_an_experiment_is_called_after_its_file(tmp_path: Any) -> None:
    path = tmp_path / "my_corpus.toml"
    path.write_text('task = "text"\ndata.train = "a.txt"\n')
    loaded = experiment.load(path, ["seed=4"])
    assert (loaded.name, loaded.seed, loaded.is_text, loaded.model_name) == ("my_corpus", 4, True, "my_corpus")


def test_task_defaults_lie_below_the_file() -> None:
    assert experiment.build(TEXT).decode.method == "sample"
    pairs = experiment.build(
        {"name": "x", "task": "summarize", "data": {"train": "a", "normalize": {"lowercase": True}}}
    )
    assert pairs.decode.method == "beam"
    assert pairs.data.normalize.lowercase
    assert pairs.data.normalize.whitespace == "collapse"


def test_settings_of_a_stage_change_with_what_matters_to_it() -> None:
    first, second = experiment.build(TEXT), experiment.build(TEXT, ["optim.lr=1e-3", "data.train=other.txt"])
    assert first.settings("ingest") == second.settings("ingest")
    assert first.settings("tokenize_corpus") == second.settings("tokenize_corpus")
    assert first.settings("train") != second.settings("train")
    greedy = experiment.build(TEXT, ["decode.method=greedy", "decode.beam_size=7"])
    assert greedy.settings("evaluate") == experiment.build(TEXT, ["decode.method=greedy"]).settings("evaluate")
    assert set(first.settings("tune")) > set(first.settings("train"))
    assert first.settings("register")["model_name"] == "x"
    with pytest.raises(ValueError, match="no stage"):
        first.settings("dance")


class Small(Config):
    size: Annotated[int, Field(ge=1)] | None = 3
    table: dict[str, int] = {}


def test_rules_hold_for_any_config_class() -> None:
    assert Small.parse(apply_overrides(Small, {}, ["size=none", "table={a = 1}"])).plain() == {
        "size": None,
        "table": {"a": 1},
    }
    with pytest.raises(ConfigError, match="size: should be greater than or equal to 1"):
        Small.parse({"size": 0}, "here")


class Span(Config):
    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError("the ends are the wrong way round")
        return self


class Spans(Config):
    spans: dict[str, Span] = {}


def test_mistakes_below_a_table_of_any_keys_have_the_key_in_their_path() -> None:
    wrong = {"low": 2, "high": 1}
    with pytest.raises(ConfigError) as caught:
        Spans.parse({"spans": {"a.b": wrong, "c": wrong, "d": {"low": "x", "high": 1, "hihg": 1}, "str": 5}})
    first, second, number, unknown, table = caught.value.problems
    assert first == 'spans."a.b": the ends are the wrong way round'
    assert second == "spans.c: the ends are the wrong way round"
    assert number.startswith("spans.d.low: should be a valid integer")
    assert unknown == "spans.d.hihg: unknown key; did you mean 'high'?"
    assert table.startswith("spans.str: should be a valid dictionary")
