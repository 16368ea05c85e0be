"""The model package: a folder that holds all that is needed to generate text, and nothing that needs Ray or MLflow.

    package.json        format, task, model configuration, normalization, decoding settings, checks of precisions,
                        requirements, lineage, and the SHA-256 of the other files; written last
    model.safetensors   weights
    tokenizer.json      vocabulary
    golden.json         inputs, and the outputs and log-probabilities that belong to them

This module and all that it imports (`inference_closure`) are shipped with a registered model. They need torch, numpy,
tokenizers, safetensors and pydantic only.
"""

import ast
import hashlib
import importlib.metadata
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

import rnnlm
from rnnlm.config import Config
from rnnlm.decoding.config import DecodeConfig, PrecisionCheck
from rnnlm.decoding.generator import Generator, Task
from rnnlm.errors import RnnlmError, UsageError
from rnnlm.models.build import build_model
from rnnlm.models.config import ModelConfig
from rnnlm.text.config import NormalizeConfig
from rnnlm.text.tokenizer import Tokenizer

FORMAT_VERSION = 2
"""2 has the checks of precisions, without which a package of format 1 is decoded in fp32 unless told otherwise."""
READABLE_FORMATS = (1, 2)
PACKAGE, WEIGHTS, TOKENIZER, GOLDEN = "package.json", "model.safetensors", "tokenizer.json", "golden.json"
REQUIREMENTS = ("numpy", "pydantic", "safetensors", "tokenizers", "torch")
"""Distributions that a package needs."""

_GOLDEN_LENGTH = 20
_BYTES_END = 258
_TOLERANCE = 1e-3
"""Nats by which a log-probability may differ on another machine."""


class PackageInfo(Config):
    """The contents of `package.json`."""

    format_version: int
    library_version: str
    """Release of rnnlm that wrote the package."""
    task: Task
    model: ModelConfig
    vocab_size: int
    normalize: NormalizeConfig
    decode: DecodeConfig
    precision_checks: tuple[PrecisionCheck, ...] = ()
    """What decoding below fp32 costs, see `rnnlm.evaluation.precision`; empty where it was not measured."""
    requirements: tuple[str, ...]
    """Exact versions of the distributions it was made with."""
    lineage: dict[str, Any] = Field(default_factory=dict)
    """Facts about where the model came from."""
    files: dict[str, str]
    """SHA-256 of each other file."""


def requirements() -> list[str]:
    """Exact requirements of this environment, without local parts such as `+cpu`, which no index has."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]


def save_package(folder: str | Path, generator: Generator, *, golden_inputs: Sequence[str] | None = None) -> Path:
    """Write a package. The folder appears as a whole, or not at all; an older package in its place is replaced.

    Args:
        folder: where; missing parents are made.
        generator: model, vocabulary, settings and lineage.
        golden_inputs: inputs whose greedy outputs are kept; by default a few made of the vocabulary.

    Raises:
        UsageError: the folder holds something that is not a package, or cannot be written.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; a model package is a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PACKAGE).exists():
        raise UsageError(f"{folder}: is not empty and not a model package; choose another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            written = Path(temporary) / "package"
            written.mkdir()
            _write(written, generator, golden_inputs)
            if folder.exists():
                folder.rename(Path(temporary) / "replaced")
            written.rename(folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error})") from None
    return folder


def _write(folder: Path, generator: Generator, golden_inputs: Sequence[str] | None) -> None:
    save_model(generator.model, str(folder / WEIGHTS))
    generator.tokenizer.save(folder / TOKENIZER)
    inputs = _golden_inputs(generator.tokenizer) if golden_inputs is None else golden_inputs
    _write_json(folder / GOLDEN, [_golden(generator, text) for text in inputs])
    info = PackageInfo(
        format_version=FORMAT_VERSION,
        library_version=rnnlm.__version__,
        task=generator.task,
        model=generator.model_config,
        vocab_size=generator.tokenizer.vocab_size,
        normalize=generator.normalize,
        decode=generator.decode,
        precision_checks=generator.precision_checks,
        requirements=tuple(requirements()),
        lineage=generator.lineage,
        files={name: _sha256(folder / name) for name in (GOLDEN, WEIGHTS, TOKENIZER)},
    )
    _write_json(folder / PACKAGE, info.plain())


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    with path.open("wb") as file:
        file.write(text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_info(folder: str | Path) -> PackageInfo:
    """Read and check `package.json` without loading the model.

    Raises:
        UsageError: there is no package, or its format is unknown to this release.
        RnnlmError: the file is damaged.
    """
    path = Path(folder) / PACKAGE
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{folder}: is not a model package (it has no {PACKAGE})") from None
    except (OSError, ValueError) as error:
        raise RnnlmError(f"{path}: is damaged ({error})") from None
    found = values.get("format_version") if isinstance(values, Mapping) else None
    if found not in READABLE_FORMATS:
        readable = ", ".join(map(str, READABLE_FORMATS))
        wrote = values.get("library_version", "unknown") if isinstance(values, Mapping) else "unknown"
        raise UsageError(
            f"{path}: format {found!r} was written by rnnlm {wrote}; this is rnnlm {rnnlm.__version__}, which reads "
            f"{readable}. Install rnnlm=={wrote} to use it"
        )
    return PackageInfo.parse(values, str(path))


def load_package(folder: str | Path) -> Generator:
    """The generator that a package holds, on the CPU.

    Raises:
        UsageError: there is no package, or its format is unknown to this release.
        RnnlmError: a file is missing or not the one that was written.
    """
    folder = Path(folder)
    info = read_info(folder)
    for name, expected in info.files.items():
        if not (folder / name).is_file():
            raise RnnlmError(f"{folder / name}: is missing")
        if _sha256(folder / name) != expected:
            raise RnnlmError(f"{folder / name}: is damaged (its SHA-256 differs from the one in {PACKAGE})")
    tokenizer = Tokenizer.from_file(folder / TOKENIZER)
    if tokenizer.vocab_size != info.vocab_size:
        raise RnnlmError(
            f"{folder / PACKAGE}: is damaged (a vocabulary of {info.vocab_size}, {TOKENIZER} has {tokenizer.vocab_size})"
        )
    with torch.random.fork_rng(devices=[]):
        model = build_model(info.model, tokenizer.vocab_size)
    try:
        load_model(model, str(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise RnnlmError(f"{folder / WEIGHTS}: does not fit the model in {PACKAGE} ({error})") from None
    generator = Generator(
        model,
        info.model,
        tokenizer,
        task=info.task,
        normalize=info.normalize,
        decode=info.decode,
        lineage=info.lineage,
        precision_checks=info.precision_checks,
    )
    try:
        generator.golden = [dict(entry) for entry in json.loads((folder / GOLDEN).read_bytes())]
    except (TypeError, ValueError) as error:
        raise RnnlmError(f"{folder / GOLDEN}: is damaged ({error})") from None
    return generator


def package_digest(folder: str | Path) -> str:
    """SHA-256 of a package: what identifies the model. Every file of it is named with its own digest in `package.json`.

    Raises:
        UsageError: there is no package.
    """
    read_info(folder)
    return _sha256(Path(folder) / PACKAGE)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _golden_inputs(tokenizer: Tokenizer) -> list[str]:
    """Three inputs of growing length, spread over the vocabulary."""
    # A byte-level vocabulary begins with 256 bytes, most of which are no text by themselves.
    first = _BYTES_END if tokenizer.kind == "bpe" and tokenizer.vocab_size > _BYTES_END + 7 else 3
    step = max(1, (tokenizer.vocab_size - first) // 7)
    ids = list(range(first, tokenizer.vocab_size, step))
    return [text for text in tokenizer.decode([ids[:1], ids[:3], ids[:7]]) if text.strip()]


def _golden(generator: Generator, text: str) -> dict[str, Any]:
    """The greedy output for a text, its score, and the first token's distribution, boiled down to two numbers."""
    length = min(generator.decode.max_length, _GOLDEN_LENGTH)
    options = {"method": "greedy", "max_length": length, "min_length": 0, "precision": "fp32"}
    output = generator.generate([text], generator.settings(**options))[0]
    row = generator.first_log_probs(text)
    first = None if row is None else {"best": float(row.max()), "mean": float(row[1:].mean())}
    return {"input": text, "max_length": length, "output": output.text, "score": output.score, "first_step": first}


def verify_golden(generator: Generator) -> None:
    """Generate the golden outputs that came with a package once more.

    Raises:
        RnnlmError: one differs, so that this machine or these versions do not do what the model was judged by.
    """
    for expected in generator.golden:
        options = {"method": "greedy", "max_length": expected["max_length"], "min_length": 0, "precision": "fp32"}
        output = generator.generate([expected["input"]], generator.settings(**options))[0]
        row = generator.first_log_probs(expected["input"])
        pairs = [(output.score, expected["score"])]
        if row is not None and expected["first_step"] is not None:
            pairs += [(float(row.max()), expected["first_step"]["best"])]
            pairs += [(float(row[1:].mean()), expected["first_step"]["mean"])]
        if output.text != expected["output"] or not all(_near(a, b) for a, b in pairs):
            raise RnnlmError(
                f"golden output differs: for {expected['input']!r} the package has {expected['output']!r} "
                f"(log-probabilities {[b for _, b in pairs]}), here it is {output.text!r} ({[a for a, _ in pairs]})"
            )


def _near(a: float | None, b: float | None) -> bool:
    return a == b if a is None or b is None else math.isclose(a, b, abs_tol=_TOLERANCE, rel_tol=1e-4)


def inference_closure() -> list[Path]:
    """Files of the modules of rnnlm that this module needs, itself and the packages' `__init__` included, sorted.

    They are found in the source: a module counts wherever it is imported, but not under `if TYPE_CHECKING`; in an
    `__init__` only what is imported at the top level counts.
    """
    root = Path(rnnlm.__file__).parent
    found: dict[Path, None] = {}
    waiting = ["rnnlm.package"]
    while waiting:
        name = waiting.pop()
        path = _module_path(root, name)
        if path is None or path in found:
            continue
        found[path] = None
        waiting += [name.rpartition(".")[0]] if "." in name else []
        tree = ast.parse(path.read_text("utf-8"))
        waiting += _imports(tree.body if path.name == "__init__.py" else _nodes(tree))
    return sorted(found)


def _module_path(root: Path, name: str) -> Path | None:
    base = root.joinpath(*name.split(".")[1:])
    candidates = (base / "__init__.py", base.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None) if name.split(".")[0] == "rnnlm" else None


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one, without the branches that only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")):
            yield child
            yield from _nodes(child)


def _imports(nodes: Sequence[ast.AST] | Iterator[ast.AST]) -> list[str]:
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names
