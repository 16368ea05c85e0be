"""The model that a training begins with: found, checked against the experiment, and copied beside the training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rnnlm.artifacts import INIT_FILE
from rnnlm.errors import UsageError
from rnnlm.stages.context import Context
from rnnlm.storage import Store

if TYPE_CHECKING:
    from rnnlm.integrations.mlflow_registry import Resolved
    from rnnlm.package import PackageInfo
    from rnnlm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Initial:
    """A model package that `init.from` means now."""

    named: str
    """As in the experiment."""
    package: "Resolved"
    info: "PackageInfo"

    @property
    def described(self) -> dict[str, str]:
        """For records and packages: what it was."""
        return {"from": self.named, "name": self.package.name, "version": self.package.version, "digest": self.digest}

    @property
    def digest(self) -> str:
        """Of the whole package."""
        return self.package.digest

    def tokenizer(self) -> "Tokenizer":
        """Its vocabulary."""
        from rnnlm.package import TOKENIZER
        from rnnlm.text.tokenizer import Tokenizer

        return Tokenizer.from_file(self.package.folder / TOKENIZER)


def find(context: Context) -> Initial | None:
    """The model of `init.from`; None: training begins with new weights.

    Raises:
        UsageError: there is no such model, it was trained for another task, or on text treated in another way.
    """
    named = context.experiment.init.from_
    if named is None:
        return None
    from rnnlm.integrations.mlflow_registry import resolve
    from rnnlm.package import read_info

    is_registered = named.startswith("models:")
    package = resolve(
        named if is_registered else str(context.options.base / named), context.tracking if is_registered else None
    )
    info = read_info(package.folder)
    wanted = {"task": context.experiment.task, "data.normalize": context.experiment.data.normalize}
    for name, value in wanted.items():
        found = getattr(info, name.rpartition(".")[2])
        if found != value:
            raise UsageError(f"init.from: {named} was trained with {name} = {found!r}, this experiment has {value!r}")
    return Initial(named, package, info)


def take_over(initial: Initial, context: Context, folder: Store, tokenizer: "Tokenizer") -> None:
    """Copy its weights to where the training can read them.

    Raises:
        UsageError: another vocabulary, or a model of other sizes.
    """
    from safetensors import safe_open

    from rnnlm.package import WEIGHTS
    from rnnlm.training.build import seeded_model

    if initial.tokenizer().digest != tokenizer.digest:
        raise UsageError(
            f"init.from: {initial.named} has another vocabulary than the tokens; run tokenize_corpus with the same init.from"
        )
    path = initial.package.folder / WEIGHTS
    with safe_open(str(path), "pt") as weights:
        there = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    model = seeded_model(context.experiment.model, tokenizer.vocab_size, context.experiment.seed)
    here = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    differing = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    if differing:
        shown = "; ".join(f"{name}: {there.get(name)} there, {here.get(name)} here" for name in differing[:5])
        raise UsageError(f"init.from: {initial.named} is another model than [model] describes ({shown})")
    folder.write_bytes(INIT_FILE, path.read_bytes())
