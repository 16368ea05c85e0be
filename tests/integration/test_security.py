import ast
import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from rnnlm.integrations.ray_cluster import Session

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "torch.load",
    "torch.save",
    "np.load",
    "numpy.load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "yaml.load",
}
UNSAFE_WORDS = {"allow_pickle", "weights_only"}
JOIN = """
import sys
from rnnlm.errors import UnreachableError
from rnnlm.integrations import ray_cluster
try:
    ray_cluster.connect(sys.argv[1])
except UnreachableError as error:
    print(error)
    sys.exit(7)
"""


def listening(process: psutil.Process) -> set[tuple[str, str]]:
    """Its name and the addresses it listens on; none once it has ended."""
    try:
        return {
            (process.name(), connection.laddr.ip.removeprefix("::ffff:"))
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
    except psutil.NoSuchProcess:
        return set()


def test_our_ray_listens_on_loopback_only(ray_session: Session) -> None:
    found = set().union(*map(listening, psutil.Process().children(recursive=True)))

    assert {"gcs_server", "raylet"} <= {name for name, _ in found}
    assert {address for _, address in found} == {"127.0.0.1"}


def test_the_token_is_on_and_nobody_else_can_read_it(ray_session: Session) -> None:
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])

    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(path.read_text()) == 64


def test_a_driver_without_the_token_is_refused(ray_session: Session, clean_environment: dict[str, str]) -> None:
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", JOIN, address],
        env=clean_environment | {"RAY_AUTH_TOKEN": "0" * 64},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith(f"no Ray at {address}")
    assert "Authentication token is missing or incorrect" in done.stdout


@pytest.mark.parametrize("folder", ["rnnlm", "pipelines"])
def test_nothing_is_unpickled(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))

    found = [f"{path.relative_to(ROOT)}: {name}" for path in files for name in unsafe_names(path.read_text("utf-8"))]

    assert files
    assert found == []


def test_the_scan_sees_what_it_looks_for() -> None:
    source = "import joblib.numpy_pickle\nfrom pickle import loads\nimport torch\ntorch.load(f)\nread(f, allow_pickle=True)\n"

    assert unsafe_names(source) == ["joblib.numpy_pickle", "pickle", "torch.load", "allow_pickle"]


def unsafe_names(source: str) -> list[str]:
    """Modules, functions and keywords in a source that unpickle, or let somebody else do so."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [each.name for each in names if each.name.partition(".")[0] in UNSAFE_MODULES]
            case ast.ImportFrom(module=str(module)):
                found += [module] if module.partition(".")[0] in UNSAFE_MODULES else []
            case ast.Attribute():
                found += [ast.unparse(node)] if ast.unparse(node) in UNSAFE_CALLS else []
            case ast.keyword(arg=str(word)):
                found += [word] if word in UNSAFE_WORDS else []
    return found
