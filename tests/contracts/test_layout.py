"""The shape of the repository: thin scripts, known top-level entries, experiments that load, pinned dependencies."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rnnlm import experiment

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "pipelines").glob("*.py"))
EXPERIMENTS = sorted((ROOT / "pipelines" / "experiments").glob("*.toml"))
TOP_LEVEL = {
    "pyproject.toml", "pipelines", "rnnlm", "cluster", "tests", "infra", "docs", "README.md", "ARCHITECTURE.md",
    "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "Makefile", "constraints.txt", ".ci", ".gitignore", ".rayignore",
}  # fmt: skip
MACHINE_PATHS = re.compile(r"(?<![\w.$}~])/(?:work|home|root|Users|mnt/data)/[\w.]")
MAX_SCRIPT_LINES = 60


def committed() -> list[Path]:
    """Files that git knows, or would take."""
    result = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if result.returncode != 0:
        pytest.skip("not a git checkout")
    names = [Path(name) for name in result.stdout.decode().split("\0") if name]
    return [name for name in names if (ROOT / name).is_file()]


def texts() -> list[tuple[Path, str]]:
    """Committed files that are text, with their content."""
    found = []
    for name in committed():
        content = (ROOT / name).read_bytes()
        if b"\0" not in content:
            found.append((name, content.decode("utf-8", errors="replace")))
    return found


def modules_of(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_thin(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_SCRIPT_LINES
    assert ast.get_docstring(ast.parse(text))
    assert modules_of(ast.parse(text)) <= {"rnnlm", "pipelines"} | sys.stdlib_module_names


def test_the_top_level_holds_only_what_is_known() -> None:
    assert {name.parts[0] for name in committed()} <= TOP_LEVEL


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_load_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    header = text[: text.index("\n", text.rindex("\n#", 0, text.index("\ntask")) + 1)]
    assert header.startswith("# ")
    assert f"pipelines/experiments/{path.name}" in header, "the header shows the command"
    values = tomllib.loads(text)
    given = [] if {"train", "hub", "demo"} & values.get("data", {}).keys() else ["data.train=corpus.tsv"]
    loaded = experiment.load(path, given)
    assert loaded.name == values.get("name", path.stem)


def test_no_file_knows_a_machine() -> None:
    own = Path(__file__).relative_to(ROOT)
    found = [
        f"{name}: {match.group()}" for name, text in texts() if name != own for match in MACHINE_PATHS.finditer(text)
    ]
    assert found == []


def test_the_pattern_of_machine_paths_finds_them() -> None:
    assert MACHINE_PATHS.search("cd /home/me/x")
    assert MACHINE_PATHS.search('"/root/.cache"')
    assert not MACHINE_PATHS.search("https://host/home/me and $HOME/work/x and a/work/b")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)", line)
        assert match, f"not a pin: {line}"
        found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    assert len(found) == len(lines)
    return found


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", line)[0]).lower() for line in wanted}
    assert names <= pins().keys()


def test_pins_have_no_local_part() -> None:
    assert [f"{name}=={version}" for name, version in pins().items() if "+" in version] == []


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
