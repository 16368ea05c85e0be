"""The model that a training begins with: found, checked against the experiment, and copied beside the training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rnnlm.artifacts import INIT_FILE
from rnnlm.errors import UsageError
from rnnlm.stages.context import Context
from rnnlm.storage import Store

if TYPE_CHECKING:
    from rnnlm.integrations.mlflow_registry import Resolved
    from rnnlm.integrations.mlflow_tracking import Tracking
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


def find(context: Context, tracking: "Tracking | None" = None) -> Initial | None:
    """The model of `init.from`; None: training begins with new weights.

    Args:
        context: with the experiment.
        tracking: where registered models are; None: the context's.

    Raises:
        UsageError: there is no such model, it was trained for another task, on text treated in another way, or has another
            kind of vocabulary.
    """
    named = context.experiment.init.from_
    if named is None:
        return None
    from rnnlm.integrations.mlflow_registry import resolve
    from rnnlm.package import read_info

    if named.startswith("models:"):
        package = resolve(named, tracking or context.tracking)
    else:
        package = resolve(str(context.options.base / named))
    initial = Initial(named, package, read_info(package.folder))
    experiment, info = context.experiment, initial.info
    for name, found, wanted in (
        ("task", info.task, experiment.task),
        ("data.normalize", info.normalize, experiment.data.normalize),
        ("tokenizer.kind", initial.tokenizer().kind, experiment.tokenizer.kind),
    ):
        if found != wanted:
            raise UsageError(f"init.from: {named} was trained with {name} = {found!r}, this experiment has {wanted!r}")
    return initial


def check_sizes(initial: Initial, context: Context, vocab_size: int) -> None:
    """Whether its weights fit into the model that the experiment describes.

    Raises:
        UsageError: they do not.
    """
    from safetensors import safe_open

    from rnnlm.package import WEIGHTS
    from rnnlm.training.build import seeded_model

    with safe_open(str(initial.package.folder / WEIGHTS), "pt") as weights:
        there = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    model = seeded_model(context.experiment.model, vocab_size, context.experiment.seed)
    here = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    differing = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    if differing:
        shown = "; ".join(f"{name}: {there.get(name)} there, {here.get(name)} here" for name in differing[:5])
        raise UsageError(f"init.from: {initial.named} is another model than [model] describes ({shown})")


def take_over(initial: Initial, context: Context, folder: Store, tokenizer: "Tokenizer") -> None:
    """Copy its weights to where the training can read them.

    Raises:
        UsageError: another vocabulary, or a model of other sizes.
    """
    from rnnlm.package import WEIGHTS

    if initial.tokenizer().digest != tokenizer.digest:
        raise UsageError(
            f"init.from: {initial.named} has another vocabulary than the tokens; run tokenize_corpus with the same init.from"
        )
    check_sizes(initial, context, tokenizer.vocab_size)
    folder.write_bytes(INIT_FILE, (initial.package.folder / WEIGHTS).read_bytes())
