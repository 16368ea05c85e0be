"""Light things stay light: what is imported by `--help`, by a mistake, and by the library itself."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "mlflow", "pyarrow", "datasets", "numpy.random", "matplotlib", "tokenizers")
TEXT = "pipelines/experiments/demo_text.toml"
GENERATE = ["--model", "m", "--input", "i", "--output", "o"]
MISTAKES: dict[str, list[str]] = {
    "ingest": [TEXT, "data.trian=x"],
    "tokenize_corpus": [TEXT, "tokenizer.vocab_sise=300"],
    "train": [TEXT, "optim.lrr=1"],
    "tune": [TEXT, "tune.trails=3"],
    "evaluate": [TEXT, "evaluate.promt=x"],
    "register": [TEXT, "modle.hidden_size=8"],
    "run_all": [TEXT, "optim.lrr=1"],
    "compare": [TEXT, "optim.lrr=1"],
    "generate": [*GENERATE, "decode.beem_size=4"],
    "prune": ["--keep-run", "3"],
    "demo": ["--worker", "1"],
}
"""For every script in pipelines/, arguments with one misspelt key or option."""


def loaded(code: str) -> tuple[int, set[str]]:
    """Exit code of the code, and which heavy modules it had loaded by its end."""
    probe = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('LOADED', *[name for name in {HEAVY} if name in sys.modules]))\n"
        "exec(sys.argv[1])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", probe, code], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )
    assert "AssertionError" not in result.stderr, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("LOADED")]
    return result.returncode, set(line.split()[1:])


def command(stage: str, *arguments: str) -> str:
    """Code that does what `python -m pipelines.STAGE ARGUMENTS` does."""
    return f"import runpy; sys.argv = {['x', *arguments]}; runpy.run_module('pipelines.{stage}', run_name='__main__')"


def test_every_script_is_here() -> None:
    assert {path.stem for path in (ROOT / "pipelines").glob("*.py")} - {"__init__"} == set(MISTAKES)


@pytest.mark.parametrize("stage", MISTAKES)
def test_help_and_a_misspelt_key_are_light(stage: str) -> None:
    """In one process, one after the other."""
    both = f"""
try:
    {command(stage, "--help")}
except SystemExit as end:
    found = end.code, [name for name in {HEAVY} if name in sys.modules]
    assert found == (0, []), found
else:
    raise AssertionError("did not end")
{command(stage, *MISTAKES[stage])}
"""
    assert loaded(both) == (2, set())


def test_a_value_out_of_range_is_light() -> None:
    assert loaded(command("train", TEXT, "optim.lr=-1")) == (2, set())


def test_importing_the_library_loads_no_torch() -> None:
    assert loaded("import rnnlm, rnnlm.experiment, rnnlm.cli") == (0, set())


def test_the_library_needs_neither_ray_nor_mlflow() -> None:
    code, found = loaded("import rnnlm; rnnlm.fit; rnnlm.load")
    assert code == 0
    assert not found & {"ray", "mlflow", "datasets", "pyarrow"}


def test_an_unknown_name_of_the_library_is_an_attribute_error() -> None:
    import rnnlm

    with pytest.raises(AttributeError, match="no attribute 'train_me'"):
        _ = rnnlm.train_me
