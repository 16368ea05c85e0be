"""Light things stay light: what is imported by `--help`, a config mistake, and the library itself."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "mlflow", "pyarrow", "datasets", "numpy.random", "matplotlib", "tokenizers")
STAGES = ("ingest", "tokenize_corpus", "train", "tune", "evaluate", "register", "generate", "run_all")


def loaded(code: str) -> tuple[int, set[str]]:
    """Exit code of the code, and which heavy modules it loaded."""
    probe = (
        "import sys\ncode = 0\ntry:\n    exec(sys.argv[1])\nexcept SystemExit as end:\n    code = int(end.code or 0)\n"
        f"print('LOADED', *[name for name in {HEAVY} if name in sys.modules])\nsys.exit(code)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", probe, code], capture_output=True, text=True, check=False, timeout=60
    )
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("LOADED")]
    return result.returncode, set(line.split()[1:])


@pytest.mark.parametrize("stage", STAGES)
def test_help_is_light(stage: str) -> None:
    assert loaded(
        f"import runpy; sys.argv = ['x', '--help']; runpy.run_module('pipelines.{stage}', run_name='__main__')"
    ) == (0, set())


def test_a_config_mistake_is_light() -> None:
    code = (
        "import runpy; sys.argv = ['x', 'pipelines/experiments/demo_text.toml', 'optim.lr=-1'];"
        "runpy.run_module('pipelines.train', run_name='__main__')"
    )
    assert loaded(code) == (2, set())


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
