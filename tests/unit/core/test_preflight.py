"""`--check`: what it says, what it refuses, and that it leaves nothing behind."""

import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rnnlm import cli, experiment, preflight
from rnnlm.console import Console
from rnnlm.decoding.generator import Generator
from rnnlm.errors import UnreachableError, UsageError
from rnnlm.interrupts import Interrupts
from rnnlm.models.build import build_model
from rnnlm.stages import context
from rnnlm.stages.context import Context, Options, Outcome
from rnnlm.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[3]
PAIRS = """
task = "translate"
data.train = "pairs.tsv"
[model]
embedding_size = 8
hidden_size = 8
[train]
batch_tokens = 64
"""


def never(_: Context) -> Outcome:
    raise AssertionError("the stage should not have run")


def checked(*argv: str) -> int:
    return cli.main("train", never, None, [*argv, "--check"])


def found(lines: list[str]) -> dict[str, str]:
    return {line.split()[0]: line.split(None, 1)[1] for line in lines if line.startswith("  ")}


def test_it_tells_what_a_training_costs(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert checked("small.toml") == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[0] == "small: fine"
    told = found(lines)
    assert told["input"] == "0.0 MB in 1 files or sets"
    assert told["parameters"].startswith("72,")
    assert "without embeddings" in told["parameters"]
    size = (desk / "corpus.txt").stat().st_size
    assert told["tokens"] == f"about {size:,} an epoch, vocabulary of 8,000"
    assert told["steps"] == "about 4, of at most 16 positions each"
    assert told["memory"].startswith("about 1.5 GB")
    assert told["disk"].endswith(f"MB in {desk}/store")
    assert re.fullmatch(r"about \d s with all cores of this machine", told["training"])
    assert told["tracking"] == f"sqlite:///{desk}/store/mlflow.db"
    assert err == ""


def test_pairs_are_checked_too(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (desk / "pairs.toml").write_text(PAIRS)
    (desk / "pairs.tsv").write_text("source\ttarget\n" + "a b\tc d\n" * 50)
    assert checked("pairs.toml") == 0
    told = found(capfd.readouterr().out.splitlines())
    assert told["steps"].endswith("of at most 64 positions each")
    assert "s with all cores" in told["training"]


def test_it_writes_nothing_and_starts_no_ray(desk: Path) -> None:
    code = (
        "import os, sys\n"
        "from rnnlm import cli\n"
        "code = cli.main('train', None, None, ['small.toml', '--check'])\n"
        "import psutil\n"
        "print('STARTED', *[p.name() for p in psutil.Process().children(recursive=True)])\n"
        "print('LOADED', *[name for name in ('ray', 'mlflow', 'datasets') if name in sys.modules])\n"
        "sys.exit(code)\n"
    )
    before = sorted(desk.iterdir())
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-2:] == ["STARTED", "LOADED"]
    assert sorted(desk.iterdir()) == before


def test_json(desk: Path, last_line: Callable[[], dict[str, Any]]) -> None:
    assert checked("small.toml", "--json") == 0
    assert last_line()["stage"] == "train"
    assert checked("small.toml", "data.train=absent.txt", "--json") == 2
    assert "absent.txt: no such file" in last_line()["error"]


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--store", "small.toml/store"], 1, "small.toml cannot be written"),
        (["--tracking-uri", "http://127.0.0.1:1"], 1, "tracking server http://127.0.0.1:1: does not answer"),
        (["--address", "127.0.0.1:1"], 1, "no Ray at 127.0.0.1:1: Connection refused"),
        (["--address", "ray://127.0.0.1:1"], 1, "no Ray at ray://127.0.0.1:1: Connection refused"),
        (["data.train=*.none"], 2, "*.none matches no file"),
        (["data.columns.id=x"], 2, "corpus.txt is plain text, which has no columns"),
    ],
)
def test_what_cannot_work(
    desk: Path, argv: list[str], code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert checked("small.toml", *argv) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert sorted(path.name for path in desk.iterdir()) == ["corpus.txt", "small.toml"]


def test_a_file_where_the_store_should_be(desk: Path) -> None:
    (desk / "taken").write_text("")
    with pytest.raises(UnreachableError, match="taken cannot be written"):
        preflight.check_places(Options(str(desk / "taken" / "below"), "sqlite:////x.db"))


def test_a_remote_store_that_does_not_answer(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match="store s3://bucket/x: "):
        preflight.check_places(Options("s3://bucket/x", "sqlite:////x.db"))


def test_libraries_and_locks_of_a_remote_store(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    the_experiment = experiment.load("small.toml", [])
    remote = Options("s3://bucket/x", "sqlite:////x.db", lock="required", base=desk)
    monkeypatch.setattr(context.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--store s3://bucket/x: .* pip install 'rnnlm\[s3\]'"):
        preflight.check(the_experiment, remote)
    with pytest.raises(UsageError, match=r"pip install 'rnnlm\[s3\]'"):
        assert Context(the_experiment, remote, Console(), Interrupts()).tracking
    with pytest.raises(UsageError, match="--lock required: s3://bucket/x cannot create a file exclusively"):
        preflight.check(the_experiment, replace(remote, tracking_uri="http://127.0.0.1:9"))


def test_a_ray_that_answers(desk: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        preflight.check_places(Options(str(desk), "sqlite:////x.db", address=address))
    preflight.check_places(Options(str(desk), "sqlite:////x.db", address="local"))


def test_estimates(desk: Path) -> None:
    def estimate(*overrides: str, step_s: float | None = 0.5) -> preflight.Estimate:
        values = ["train.lanes=10", "train.bptt_length=10", "train.max_steps=none", "train.epochs=2", *overrides]
        return preflight.estimate(experiment.load("small.toml", values), 10_000, 1_000_000, step_s)

    base = estimate()
    assert (base.num_tokens, base.positions_per_step, base.steps, base.seconds) == (10_000, 100, 200, 100.0)
    assert estimate("tokenizer.kind=bpe").num_tokens == pytest.approx(10_000 / 3.5, rel=0.01)
    assert estimate("train.max_steps=7").seconds == 3.5
    assert estimate("train.max_minutes=1").seconds == 60.0
    assert estimate("train.max_minutes=1", step_s=None).seconds == 60.0
    assert estimate(step_s=None).seconds is None
    assert estimate("optim.ema_decay=0.99").memory_bytes - base.memory_bytes == 4_000_000
    assert base.memory_bytes > preflight.RAY_BYTES + 16_000_000
    assert estimate("train.keep_checkpoints=9").disk_bytes > base.disk_bytes > 10_000


def test_nothing_is_estimated_from_a_size_that_is_not_known(desk: Path) -> None:
    def estimate(*overrides: str) -> preflight.Estimate:
        the_experiment = experiment.load("small.toml", ["train.max_steps=none", *overrides])
        return preflight.estimate(the_experiment, 0, 1_000_000, 0.5)

    base = estimate()
    assert (base.num_tokens, base.steps, base.disk_bytes, base.seconds) == (None, None, None, None)
    assert base.memory_bytes > preflight.RAY_BYTES
    assert (estimate("train.max_steps=7").steps, estimate("train.max_steps=7").seconds) == (7, 3.5)
    assert estimate("train.max_minutes=1").seconds == 60.0


@pytest.mark.parametrize(
    ("overrides", "steps", "training"),
    [
        ([], "not known", "not known"),
        (["train.max_minutes=5"], "not known", "at most 5 min with all cores of this machine"),
        (["train.max_steps=4"], "about 4", "about 0 s with all cores of this machine"),
    ],
)
def test_a_corpus_whose_size_is_not_known(
    desk: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], steps: str, training: str
) -> None:
    known = preflight.ingest.find_sources
    monkeypatch.setattr(preflight.ingest, "find_sources", lambda where: replace(known(where), num_bytes=0))
    monkeypatch.setattr(preflight, "step_seconds", lambda *_: 0.1)
    small = experiment.load("small.toml", ["train.max_steps=none", *overrides])
    told = found(preflight.check(small, Options(str(desk / "store"), "sqlite:////x.db", base=desk)))
    assert told["input"] == "size not known, in 1 files or sets"
    assert told["tokens"] == "not known, vocabulary of 8,000"
    assert told["steps"] == f"{steps}, of at most 16 positions each"
    assert told["disk"] == f"not known, in {desk}/store"
    assert told["training"] == training


def test_a_slow_step_is_not_measured_for_long(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "MEASURING_S", -1.0)
    small = experiment.load("small.toml")
    lines = preflight.check(small, Options(str(desk / "store"), "sqlite:////x.db", base=desk))
    assert "  training    not measured" in lines


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (119, "119 s"), (121, "2 min"), (7_100, "118 min"), (7_300, "2.0 h")]
)
def test_durations(seconds: float, said: str) -> None:
    assert preflight.duration(seconds) == said


@pytest.fixture
def package(desk: Path) -> str:
    """The folder of a model of small.toml's sizes and of another vocabulary."""
    described = experiment.load("small.toml")
    tokenizer = Tokenizer.train(["line of the corpus 0123456789 x\n"], kind="char", vocab_size=300, min_frequency=1)
    model = build_model(described.model, tokenizer.vocab_size)
    Generator(model, described.model, tokenizer, task="text", decode=described.decode).save(desk / "model")
    return "init.from=model"


def test_the_model_to_begin_with_is_looked_at(desk: Path, package: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(desk.iterdir())
    assert checked("small.toml", package) == 0
    told = found(capfd.readouterr().out.splitlines())
    assert told["begins"].startswith("with model, ")
    assert told["tokens"].endswith("vocabulary of 29")
    assert sorted(desk.iterdir()) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("init.from=nothing", "nothing: no such folder"),
        ("init.from=models:/pets@champion", "no model is registered at sqlite:///"),
        ("tokenizer.kind=bpe", "was trained with tokenizer.kind = 'char', this experiment has 'bpe'"),
        ("data.normalize.lowercase=true", "was trained with data.normalize = "),
        ("model.hidden_size=9", "is another model than [model] describes ("),
    ],
)
def test_a_model_that_does_not_fit(
    desk: Path, package: str, changed: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = [changed] if changed.startswith("init") else [package, changed]
    if changed.startswith("model"):
        overrides.append("model.tie_embeddings=false")
    before = sorted(desk.iterdir())
    assert checked("small.toml", *overrides) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err
    assert sorted(desk.iterdir()) == before
