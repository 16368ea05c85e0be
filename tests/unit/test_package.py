"""The model package: what is written comes back, damage and unknown formats are named, and what ships is enough."""

import ast
import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rnnlm
from rnnlm import package
from rnnlm.decoding.config import DecodeConfig, PrecisionCheck
from rnnlm.decoding.generator import Generator, Task
from rnnlm.errors import RnnlmError, UsageError
from rnnlm.models.build import build_model
from rnnlm.models.config import LanguageModelConfig, Seq2SeqConfig
from rnnlm.nn.products import supports
from rnnlm.text.config import NormalizeConfig
from rnnlm.text.tokenizer import Tokenizer

FORMATS = sorted((Path(__file__).parents[1] / "golden" / "packages").glob("format_*"))
TEXTS = ["grey clouds move over the hill", "nobody saw the fox at night", "ten boats left the harbour early"]


def make(task: Task, kind: str = "bpe") -> Generator:
    tokenizer = Tokenizer.train(TEXTS, kind=kind, vocab_size=300, min_frequency=1)
    config: LanguageModelConfig | Seq2SeqConfig = Seq2SeqConfig(embedding_size=8, hidden_size=6)
    if task == "text":
        config = LanguageModelConfig(embedding_size=8, hidden_size=6)
    torch.manual_seed(11)
    model = build_model(config, tokenizer.vocab_size)
    normalize = NormalizeConfig(whitespace="collapse", lowercase=True)
    decode = DecodeConfig(beam_size=3, max_length=15)
    return Generator(model, config, tokenizer, task=task, normalize=normalize, decode=decode, lineage={"run": "r1"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("translate").save(tmp_path_factory.mktemp("packages") / "translator")


@pytest.mark.parametrize("kind", ["bpe", "word", "char"])
@pytest.mark.parametrize("task", ["text", "translate"])
def test_what_was_saved_comes_back(tmp_path: Path, task: Task, kind: str) -> None:
    generator = make(task, kind)
    state = torch.random.get_rng_state()
    loaded = package.load_package(generator.save(tmp_path / "made" / "model"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sorted(path.name for path in (tmp_path / "made" / "model").iterdir()) == sorted(
        [package.PACKAGE, package.WEIGHTS, package.TOKENIZER, package.GOLDEN]
    )
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["model"]
    for name, tensor in generator.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert (loaded.task, loaded.normalize, loaded.decode) == (task, generator.normalize, generator.decode)
    assert (loaded.model_config, loaded.lineage) == (generator.model_config, {"run": "r1"})
    assert loaded.tokenizer.digest == generator.tokenizer.digest
    assert loaded(TEXTS) == generator(TEXTS)
    assert len(loaded.golden) >= 2
    package.verify_golden(loaded)


def test_equal_models_make_equal_packages(tmp_path: Path, saved: Path) -> None:
    again = make("translate").save(tmp_path / "again")
    assert package.package_digest(again) == package.package_digest(saved)
    for path in saved.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    changed = make("translate")
    changed.lineage["run"] = "r2"
    assert package.package_digest(changed.save(again)) != package.package_digest(saved)


def test_the_info_says_what_is_needed(saved: Path) -> None:
    info = package.read_info(saved)
    assert info.format_version == package.FORMAT_VERSION
    assert info.library_version == rnnlm.__version__
    names = [requirement.partition("==")[0] for requirement in info.requirements]
    assert names == ["numpy", "pydantic", "safetensors", "tokenizers", "torch"]
    assert not any("+" in requirement for requirement in info.requirements)
    assert dict(info.files) == {
        name: hashlib.sha256((saved / name).read_bytes()).hexdigest()
        for name in (package.WEIGHTS, package.TOKENIZER, package.GOLDEN)
    }
    text = (saved / package.PACKAGE).read_text()
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("name", [package.WEIGHTS, package.TOKENIZER, package.GOLDEN])
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, saved: Path, name: str) -> None:
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(RnnlmError, match=f"{name}: is damaged"):
        package.load_package(copy)
    (copy / name).unlink()
    with pytest.raises(RnnlmError, match=f"{name}: is missing"):
        package.load_package(copy)


def rewrite(folder: Path, **changes: object) -> None:
    values = json.loads((folder / package.PACKAGE).read_text())
    (folder / package.PACKAGE).write_text(json.dumps(values | changes))


def test_an_unknown_format_names_the_release_that_reads_it(tmp_path: Path, saved: Path) -> None:
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    rewrite(copy, format_version=99, library_version="7.8.9", new_key={})
    with pytest.raises(UsageError, match=r"format 99 was written by rnnlm 7\.8\.9.*rnnlm==7\.8\.9"):
        package.load_package(copy)


def test_what_is_no_package_is_refused(tmp_path: Path, saved: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", saved / package.GOLDEN):
        with pytest.raises(UsageError, match="is not a model package"):
            package.read_info(path)
    (tmp_path / package.PACKAGE).write_text("{")
    with pytest.raises(RnnlmError, match="is damaged"):
        package.read_info(tmp_path)
    (tmp_path / package.PACKAGE).write_text("[]")
    with pytest.raises(UsageError, match="format None"):
        package.read_info(tmp_path)


def test_weights_that_do_not_fit_are_named(tmp_path: Path, saved: Path) -> None:
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    values = json.loads((copy / package.PACKAGE).read_text())
    rewrite(copy, model=values["model"] | {"hidden_size": 10})
    with pytest.raises(RnnlmError, match="does not fit the model"):
        package.load_package(copy)


def test_a_vocabulary_that_does_not_fit_is_named(tmp_path: Path, saved: Path) -> None:
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    rewrite(copy, vocab_size=2**70)
    with pytest.raises(RnnlmError, match=r"package\.json: is damaged \(a vocabulary of 1180591620717411303424"):
        package.load_package(copy)


def test_other_folders_are_not_overwritten_but_packages_are(tmp_path: Path) -> None:
    generator = make("text")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and not a model package"):
        generator.save(tmp_path / "notes")
    with pytest.raises(UsageError, match="is a file"):
        generator.save(tmp_path / "notes" / "a.txt")
    with pytest.raises(UsageError, match="cannot be written"):
        generator.save(tmp_path / "notes" / "a.txt" / "below")
    (tmp_path / "empty").mkdir()
    generator.save(tmp_path / "empty")
    generator.decode = DecodeConfig(max_length=7)
    assert package.load_package(generator.save(tmp_path / "empty")).decode.max_length == 7


def test_golden_outputs_notice_other_weights(saved: Path) -> None:
    generator = package.load_package(saved)
    with torch.no_grad():
        generator.model.get_parameter("target_embedding.weight").mul_(1.5)
    with pytest.raises(RnnlmError, match="golden output differs"):
        package.verify_golden(generator)


def test_golden_inputs_can_be_given(tmp_path: Path) -> None:
    package.save_package(tmp_path / "model", make("summarize"), golden_inputs=["the fox", " "])
    loaded = package.load_package(tmp_path / "model")
    assert [entry["input"] for entry in loaded.golden] == ["the fox", " "]
    assert (loaded.golden[1]["score"], loaded.golden[1]["first_step"]) == (None, None)
    package.verify_golden(loaded)


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: str(folder.name))
def test_packages_of_every_format_load_and_give_their_golden_outputs(folder: Path) -> None:
    package.verify_golden(package.load_package(folder))


def test_every_readable_format_is_kept() -> None:
    kept = {package.read_info(folder).format_version for folder in FORMATS}
    assert kept == set(package.READABLE_FORMATS)


def test_the_checks_of_precisions_come_back_and_decide(tmp_path: Path) -> None:
    generator = make("translate")
    assert package.load_package(generator.save(tmp_path / "without")).precision_checks == ()
    checks = [("int8", True), ("bf16", False)]
    generator.precision_checks = tuple(
        PrecisionCheck(precision=name, metric="bleu", value=29.9, fp32_value=30, rows=9, allowed=allowed)  # type: ignore[arg-type]
        for name, allowed in checks
    )
    loaded = package.load_package(generator.save(tmp_path / "with"))
    assert loaded.precision_checks == generator.precision_checks
    used = "int8" if supports("int8") else "fp32"
    assert loaded.decoder() is loaded.decoder(loaded.settings(precision=used))
    assert (loaded.decoder() is loaded.decoder(loaded.settings(precision="fp32"))) == (used == "fp32")
    package.verify_golden(loaded)


def test_a_package_of_the_first_format_is_decoded_in_fp32() -> None:
    loaded = package.load_package(next(folder for folder in FORMATS if folder.name == "format_1_translate"))
    assert loaded.decoder() is loaded.decoder(loaded.settings(precision="fp32"))


def shipped(target: Path) -> Path:
    root = Path(rnnlm.__file__).parent
    for path in package.inference_closure():
        copy = target / "rnnlm" / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return target


def test_the_closure_holds_what_generating_needs_and_no_more() -> None:
    root = Path(rnnlm.__file__).parent
    names = {path.relative_to(root).as_posix() for path in package.inference_closure()}
    assert {"__init__.py", "package.py", "decoding/beam.py", "models/seq2seq.py", "text/tokenizer.py"} <= names
    assert not any(
        name.startswith(("training", "data/", "optim", "integrations", "evaluation", "batch")) for name in names
    )
    assert not names & {"api.py", "experiment.py", "storage.py", "artifacts.py", "cli.py"}


def allowed_modules() -> set[str]:
    """Top-level modules of the package's requirements, with all that these require themselves."""
    waiting, seen = list(package.REQUIREMENTS), set()
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name not in seen:
            seen.add(name)
            try:
                needed = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            waiting += [
                line.split(";")[0].split("[")[0].strip(" ()").rstrip("=<>!~.0123456789, ")
                for line in needed
                if "extra" not in line
            ]
    owners = importlib.metadata.packages_distributions()
    return {module for module, names in owners.items() if {n.lower().replace("_", "-") for n in names} & seen}


BLOCKER = """
import sys, sysconfig
allowed, code, folder = set(sys.argv[1].split(",")), sys.argv[2], sys.argv[3]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in (getattr(finder, "__module__", "") or "")]
from importlib.machinery import PathFinder
site = sysconfig.get_paths()["purelib"]
class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if path is None and top not in allowed and PathFinder.find_spec(top, [site]) is not None:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocker())
sys.path.insert(0, code)
import rnnlm.package
assert rnnlm.__file__.startswith(code), rnnlm.__file__
generator = rnnlm.package.load_package(folder)
rnnlm.package.verify_golden(generator)
print(generator("the fox", beam_size=2))
"""


def test_the_closure_works_with_the_packages_requirements_alone(tmp_path: Path, saved: Path) -> None:
    allowed = allowed_modules()
    assert not allowed & {"pyarrow", "ray", "mlflow", "datasets", "pandas", "rnnlm"}
    arguments = [",".join(sorted(allowed)), str(shipped(tmp_path / "code")), str(saved)]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == package.load_package(saved)("the fox", beam_size=2)


def test_imports_for_type_checkers_do_not_count() -> None:
    tree = ast.parse("import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    from c import d\n")
    assert sorted(package._imports(package._nodes(tree))) == ["a", "c", "c.d"]
