"""What the README shows works: every fence is run, or resolved; every link leads somewhere; the tree is the tree.

A fence says what it is in its info string, after the language:

    run     executed in a folder of its own, one after another
    demo    executed where `make demo` has left its store
    long    its commands are resolved: `--check` for stages, a dry run for make, the parser for everything else of ours
    output  no command
"""

import argparse
import dataclasses
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pipelines import generate as generate_script
from rnnlm import cli, experiment, preflight
from rnnlm.errors import UsageError
from rnnlm.stages import generate as generate_stage

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BIN = Path(sys.executable).parent
CLASSES = {"run", "demo", "long", "output"}
LANGUAGES = {"run": {"sh", "python"}, "demo": {"sh", "python"}, "long": {"sh"}}
ELSEWHERE = {"source", "kubectl", "docker", "git", "curl", "crontab", "systemctl", "cd", "export"}
"""Programs that the README may name and that need not be installed here."""
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
TIMEOUT_S = 280


@dataclasses.dataclass(frozen=True)
class Fence:
    """A fenced block of a Markdown file."""

    line: int
    language: str
    kind: str
    content: str


def fences(text: str) -> list[Fence]:
    """All fenced blocks.

    Raises:
        ValueError: one without a class, or one that is not closed.
    """
    found: list[Fence] = []
    opened: tuple[int, str, str] | None = None
    content: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = re.match(r" {0,3}(`{3,}|~{3,})(.*)$", line)
        if opened is None and match:
            opened, content = (number, match[1], match[2].strip()), []
        elif opened is not None and match and match[1].startswith(opened[1]) and not match[2].strip():
            found.append(_fence(opened[0], opened[2], "\n".join(content) + "\n"))
            opened = None
        else:
            content.append(line)
    if opened is not None:
        raise ValueError(f"line {opened[0]}: the fence is not closed")
    return found


def _fence(line: int, info: str, content: str) -> Fence:
    language, _, kind = info.partition(" ")
    if kind not in CLASSES:
        raise ValueError(f"line {line}: the fence {info!r} says none of {', '.join(sorted(CLASSES))}")
    if language not in LANGUAGES.get(kind, {language}):
        raise ValueError(f"line {line}: {language!r} cannot be {kind}")
    return Fence(line, language, kind, content)


def commands(content: str) -> list[list[str]]:
    """The commands of a shell block, as words: continued lines joined, comments and variables before a command dropped."""
    joined = content.replace("\\\n", " ")
    found = []
    for line in joined.splitlines():
        for part in re.split(r"\s(?:&&|\|\|?|;)\s", line):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
                words.pop(0)
            if words:
                found.append(words)
    return found


def of_kind(kind: str) -> list[Any]:
    """The README's fences of a kind, as parameters of a test."""
    try:
        found = [fence for fence in fences(README.read_text()) if fence.kind == kind]
    except (ValueError, FileNotFoundError):
        found = []  # test_every_fence_has_a_class says why
    return [pytest.param(fence, id=f"line{fence.line}") for fence in found]


def environment() -> dict[str, str]:
    """That of the tests, with our programs first, and none of the user's places."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RNNLM_", "MLFLOW_", "RAY_"))}
    return kept | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def execute(fence: Fence, folder: Path) -> None:
    """Run a fence; it must end well."""
    argv = ["bash", "-euo", "pipefail", "-c"] if fence.language == "sh" else [sys.executable, "-c"]
    result = subprocess.run(
        [*argv, fence.content], cwd=folder, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )  # fmt: skip
    assert result.returncode == 0, f"line {fence.line}: {result.stdout[-2000:]}\n{result.stderr[-2000:]}"


def stage_main(module: str) -> Callable[[list[str]], int]:
    """Runs `python -m MODULE ARGUMENTS` in this process."""

    def run(argv: list[str]) -> int:
        before = sys.argv
        sys.argv = [module, *argv]
        sys.modules.pop(module, None)  # another test may have imported it, of which runpy warns
        try:
            with mock.patch.object(cli, "leave", sys.exit):  # which would end this process for good
                runpy.run_module(module, run_name="__main__", alter_sys=False)
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            sys.argv = before
        return 0

    return run


def resolve(words: list[str], folder: Path, say: Callable[[], str] = lambda: "") -> str | None:
    """Check a command without running it.

    Returns:
        Why it could not be checked, if so.
    """
    if "--" in words[1:]:  # `ray job submit ... -- python -m ...`
        place = words.index("--")
        return resolve(words[:place], folder, say) or resolve(words[place + 1 :], folder, say)
    program = Path(words[0]).name
    if program.startswith("python") and words[1:2] == ["-m"] and words[2].startswith("pipelines."):
        return _resolve_stage(words[2], words[3:], folder, say)
    if program == "make":
        result = subprocess.run(
            ["make", "-n", "-C", str(ROOT), *words[1:]], capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, f"{shlex.join(words)}: {result.stderr}"
    elif "/" in words[0] and not words[0].startswith(".venv/bin/"):
        assert (ROOT / words[0]).is_file(), f"{words[0]}: no such file"
    elif program not in ELSEWHERE:
        assert (BIN / program).is_file() or shutil.which(program), f"{program}: no such program"
    return None


def _resolve_stage(module: str, argv: list[str], folder: Path, say: Callable[[], str]) -> str | None:
    stage = module.removeprefix("pipelines.")
    assert (ROOT / "pipelines" / f"{stage}.py").is_file(), f"{module}: no such stage"
    try:
        arguments = parser_of(stage).parse_intermixed_args(argv)
        if stage == "generate":
            words = (arguments.model, arguments.input, arguments.output, arguments.overrides)
            generate_stage.request(*words, folder)
        elif "experiment" in arguments:
            experiment.load(arguments.experiment, arguments.overrides)
    except UsageError as error:
        raise AssertionError(f"{module} {shlex.join(argv)}: {error}") from None
    missing = [word for word in argv if "$" in word or ("shared/data" in word and not _exists(word, folder))]
    missing += [word for word in argv if word.startswith("models:")]
    if missing or "check" not in arguments:
        return f"its inputs are not here: {missing[:1]}"
    code = stage_main(module)([*argv, "--check"])
    assert code == 0, f"{module} {shlex.join(argv)}: exit code {code}: {say()}"
    return None


def parser_of(stage: str) -> argparse.ArgumentParser:
    """The arguments that a stage's script takes."""
    if stage == "generate":
        return generate_script.parser()
    if stage == "demo":
        result = cli.bare_parser(stage, None)
        cli.add_shared(result)
        return result
    return cli.parser(stage, None)


def _exists(word: str, folder: Path) -> bool:
    return bool(list(folder.glob(word.rpartition("=")[2]))) if not word.startswith("/") else Path(word).exists()


def test_every_fence_has_a_class() -> None:
    assert len(fences(README.read_text())) > 0


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the fences to run are run, one after another, as a reader would."""
    return tmp_path_factory.mktemp("readme")


@pytest.mark.parametrize("fence", of_kind("run"))
def test_it_runs(fence: Fence, workplace: Path) -> None:
    execute(fence, workplace)


@pytest.mark.parametrize("fence", of_kind("demo"))
def test_it_runs_after_make_demo(fence: Fence) -> None:
    if not list((ROOT / "store" / "demo").glob("demo_summarize_output/run=*/manifest.json")):
        pytest.skip("make demo has left no store here")
    execute(fence, ROOT)


@pytest.mark.parametrize("fence", of_kind("long"))
def test_it_resolves(
    fence: Fence, monkeypatch: pytest.MonkeyPatch, desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RNNLM_STORE", str(desk / "store"))
    monkeypatch.setattr(preflight, "step_seconds", lambda *_: None)
    reasons = [resolve(words, ROOT, lambda: "".join(capfd.readouterr())) for words in commands(fence.content)]
    assert not (desk / "store").exists()
    if reasons and all(reasons):
        pytest.skip("; ".join(reason for reason in reasons if reason))


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    if not path.exists():
        pytest.fail(f"{document} is not there")
    assert [target for target in links(path.read_text()) if not (path.parent / target).exists()] == []


def links(text: str) -> list[str]:
    """Local targets of a document's links and pictures, without what is inside code."""
    without_code = re.sub(r"^( {0,3})(```+|~~~+).*?^\1\2", "", text, flags=re.MULTILINE | re.DOTALL)
    without_code = re.sub(r"`[^`\n]*`", "", without_code)
    targets = [match[1] for match in re.finditer(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)", without_code)]
    return [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]


def tree(text: str) -> dict[str, str]:
    """Paths that ARCHITECTURE.md's tree names, and what it says about them."""
    (block,) = re.findall(r"^## The tree$.*?^```[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    found, folder = {}, ""
    for line in block.splitlines():
        match = re.match(r"(\s*)([\w./-]+)(?:\s+(.*))?$", line)
        if not match:
            continue
        if not match[1]:
            folder = match[2] if match[3] is None else ""
        found[(folder if match[1] else "") + match[2]] = match[3] or ""
    return found


def test_the_tree_is_the_tree() -> None:
    named = tree((ROOT / "ARCHITECTURE.md").read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []
    there = {f"rnnlm/{path.name}" for path in (ROOT / "rnnlm").glob("*.py") if path.name != "__init__.py"}
    there |= {f"rnnlm/{path.parent.name}/" for path in (ROOT / "rnnlm").glob("*/__init__.py")}
    assert there - named.keys() == set()
    assert [path for path, about in named.items() if not about and path != "rnnlm/"] == []


# The reader itself, on little documents.


def test_fences_are_found() -> None:
    text = "a\n```sh run\nls\n```\n\n````text output\n```\nx\n````\n~~~python demo\nprint()\n~~~\n"
    assert fences(text) == [
        Fence(2, "sh", "run", "ls\n"),
        Fence(6, "text", "output", "```\nx\n"),
        Fence(10, "python", "demo", "print()\n"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```sh\nls\n```\n", "line 1: the fence 'sh' says none of"),
        ("\n```\nls\n```\n", "line 2: the fence '' says none of"),
        ("```sh quick\nls\n```\n", "the fence 'sh quick' says none of"),
        ("```toml run\nx = 1\n```\n", "'toml' cannot be run"),
        ("```python long\nx = 1\n```\n", "'python' cannot be long"),
        ("```sh run\nls\n", "line 1: the fence is not closed"),
    ],
)
def test_fences_without_a_class_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fences(text)


def test_commands_are_taken_apart() -> None:
    assert commands("A=1 make demo   # installs\n\npython -m x \\\n  'a b' | tee log\ncd y && make test\n# only this\n") == [
        ["make", "demo"], ["python", "-m", "x", "a b"], ["tee", "log"], ["cd", "y"], ["make", "test"],
    ]  # fmt: skip


def test_what_does_not_end_well_fails(tmp_path: Path) -> None:
    execute(Fence(1, "sh", "run", "echo x > made\npython -c 'import rnnlm'\n"), tmp_path)
    execute(Fence(1, "python", "run", "assert open('made').read() == 'x\\n'\n"), tmp_path)
    for fence in (Fence(7, "sh", "run", "false\ntrue\n"), Fence(7, "python", "run", "1 / 0\n")):
        with pytest.raises(AssertionError, match="line 7"):
            execute(fence, tmp_path)


def test_commands_are_resolved(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "step_seconds", lambda *_: None)
    for fine in ("make demo", "make long NAME=x", "cluster/stop.sh", "kubectl apply -f x", ".venv/bin/pytest -q",
                 "python -m pipelines.train small.toml optim.lr=1 --workers 2",
                 "ray job submit --address x -- python -m pipelines.run_all small.toml"):  # fmt: skip
        assert resolve(shlex.split(fine), desk) is None
    for wrong in ("make nonsense", "cluster/absent.sh", "no-such-program x", "python -m pipelines.absent small.toml",
                  "python -m pipelines.train small.toml optim.lrr=1", "python -m pipelines.train absent.toml",
                  "python -m pipelines.train small.toml --wrokers 1",
                  "python -m pipelines.train small.toml optim.lrr=1 data.train=$D/x.txt",
                  "python -m pipelines.generate --model models:/m/1 --input $D/x decode.beam=3 --output out",
                  "python -m pipelines.generate --model models:/m/1 --output out"):  # fmt: skip
        with pytest.raises(AssertionError):
            resolve(shlex.split(wrong), desk)
    skipped = "python -m pipelines.train small.toml data.train=../shared/data/no/such.txt"
    assert "no/such.txt" in str(resolve(shlex.split(skipped), desk))
    assert "models:/m/1" in str(
        resolve(["python", "-m", "pipelines.generate", "--model", "models:/m/1", "--input", "x", "--output", "y"], desk)
    )
    assert resolve(["python", "-m", "pipelines.demo", "--workers", "2"], desk) is not None
    assert sorted(path.name for path in desk.iterdir()) == ["corpus.txt", "small.toml"]


def test_links_are_found() -> None:
    text = 'a [x](b.md) ![y](c/d.png "title") [z](https://h/x) [w](#top) [v](e.md#part) `[n](no.md)`\n```\n[n](no.md)\n```\n'
    assert links(text) == ["b.md", "c/d.png", "e.md"]


def test_the_tree_is_read() -> None:
    text = "## The tree\n\nwords\n\n```text\na/\n  b.py   bee\n  c/     sea\nd/     dee; e/*.x\n```\n"
    assert tree(text) == {"a/": "", "a/b.py": "bee", "a/c/": "sea", "d/": "dee; e/*.x"}
