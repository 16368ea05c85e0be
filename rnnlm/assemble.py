"""An experiment and what its stages wrote -> live objects."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rnnlm import artifacts
from rnnlm.artifacts import CORPUS_FOLDER, TOKENS_FOLDER, Record
from rnnlm.data import corpus, shards
from rnnlm.data.ragged import Ragged
from rnnlm.decoding.config import DecodeConfig, PrecisionCheck
from rnnlm.decoding.generator import Generator
from rnnlm.errors import RnnlmError, UsageError
from rnnlm.evaluation import precision
from rnnlm.evaluation import run as evaluation
from rnnlm.evaluation.config import EvaluateConfig
from rnnlm.evaluation.report import Report
from rnnlm.evaluation.run import Progress
from rnnlm.models.build import build_model
from rnnlm.models.config import ModelConfig
from rnnlm.models.language_model import LanguageModel
from rnnlm.models.seq2seq import Seq2Seq
from rnnlm.storage import Store, sha256_tree
from rnnlm.text.config import NormalizeConfig
from rnnlm.text.tokenizer import Tokenizer
from rnnlm.training.checkpoint import read_weights

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Lineage:
    """The chain of records behind a training."""

    ingest: Record
    tokens: Record
    train: Record

    @property
    def corpus_store(self) -> Store:
        """Where the corpus lies."""
        return self.ingest.store.child(CORPUS_FOLDER)

    @property
    def tokens_store(self) -> Store:
        """Where tokenizer and token shards lie."""
        return self.tokens.store.child(TOKENS_FOLDER)

    @property
    def task(self) -> Any:
        """What the model was trained for."""
        return self.train.settings["task"]

    def checkpoint(self) -> Path:
        """A local folder with the training's best checkpoint."""
        return self.train.store.fetch(self.train.files["checkpoint"])

    def has_split(self, split: str) -> bool:
        """Whether the corpus has rows of a split."""
        return bool(corpus.split_files(self.corpus_store, split))

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Rows of the corpus."""
        return corpus.read_rows(self.corpus_store, split)

    def tokens_of(self, split: str) -> dict[str, Ragged]:
        """Token ids of a split, mapped into memory."""
        return dict(shards.read_tokens(self.tokens_store, split))

    def summary(self) -> dict[str, Any]:
        """What a model package says about its origin."""
        facts = {
            "experiment": self.train.experiment,
            "run_id": self.train.run_id,
            "records": {stage.stage: stage.digest for stage in (self.ingest, self.tokens, self.train)},
            "commit": self.train.commit,
        }
        if "init" in self.train.outputs:
            facts["init"] = self.train.outputs["init"]
        return facts


def lineage(store: Store, train: Record) -> Lineage:
    """The records that a training was made from.

    Raises:
        RnnlmError: one of them is gone.
    """
    tokens = _input(store, train, "tokens", "tokenize_corpus")
    return Lineage(_input(store, tokens, "corpus", "ingest"), tokens, train)


def _input(store: Store, record: Record, name: str, stage: str) -> Record:
    folder = artifacts.folder(store, record.experiment, stage, record.inputs[name])
    found = artifacts.read_record(folder)
    if found is None:
        raise RnnlmError(f"{record.uri}: its {stage} is gone from {folder.uri}; run that stage again")
    return found


def tokenizer_of(tokens: Store) -> Tokenizer:
    """The vocabulary that a folder of tokens was made with."""
    return Tokenizer.from_file(tokens.fetch(TOKENIZER_FILE))


def trained_model(config: ModelConfig, vocab_size: int, checkpoint: Path) -> LanguageModel | Seq2Seq:
    """The model of a checkpoint's folder, in evaluation mode."""
    model = build_model(config, vocab_size)
    model.load_state_dict(read_weights(checkpoint))
    return model.eval()


def generator_of(origin: Lineage, decode: DecodeConfig) -> Generator:
    """The trained model of a lineage, ready to generate."""
    tokenizer = tokenizer_of(origin.tokens_store)
    config: ModelConfig = TypeAdapter(ModelConfig).validate_python(origin.train.settings["model"])
    model = trained_model(config, tokenizer.vocab_size, origin.checkpoint())
    scale = origin.train.outputs.get("logit_scale")
    if scale is not None:
        assert isinstance(model, LanguageModel)
        model.scale_logits(scale)
    return Generator(
        model,
        config,
        tokenizer,
        task=origin.task,
        normalize=NormalizeConfig.parse(origin.ingest.settings["data"]["normalize"]),
        decode=decode,
        lineage=origin.summary(),
    )


def checkpoint_digest(origin: Lineage) -> str:
    """SHA-256 over the files of the best checkpoint."""
    return sha256_tree(origin.checkpoint())


def evaluate_split(
    generator: Generator,
    origin: Lineage,
    split: str,
    settings: EvaluateConfig,
    *,
    baselines: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Score a generator on a split of a lineage's corpus.

    Args:
        generator: any generator, not only the one of this lineage.
        origin: whose corpus.
        split: train, valid, gate or test.
        settings: what is measured.
        baselines: whether those that are learned from train are computed too.
        progress: told how far it is.

    Raises:
        UsageError: the corpus has no such split.
    """
    rows = list(origin.rows(split))
    if not rows:
        raise UsageError(
            f"{origin.train.experiment}: the corpus has no {split} split; give data.{split} or a share for it"
        )
    train_rows = origin.rows("train") if baselines else None
    if generator.task != "text":
        return evaluation.evaluate_pairs(
            generator,
            rows,
            settings=settings,
            decode=generator.decode,
            split=split,
            train_rows=train_rows,
            progress=progress,
        )
    own = tokenizer_of(origin.tokens_store).digest == generator.tokenizer.digest
    return evaluation.evaluate_text(
        generator,
        rows,
        origin.tokens_of(split)["text"] if own else None,
        settings=settings,
        split=split,
        train_tokens=origin.tokens_of("train")["text"] if own and baselines else None,
        train_rows=train_rows,
        progress=progress,
    )


def check_precisions(
    generator: Generator, origin: Lineage, settings: EvaluateConfig, seed: int
) -> list[PrecisionCheck]:
    """What decoding below fp32 costs a lineage's own model, on a sample of its valid split; empty without that split."""
    if not origin.has_split("valid"):
        return []
    if generator.task == "text":
        return precision.check_text(generator, origin.tokens_of("valid")["text"].values, seed=seed)
    return precision.check_pairs(generator, list(origin.rows("valid")), settings, seed=seed)


def gate_settings(settings: EvaluateConfig, max_rows: int | None) -> EvaluateConfig:
    """The same measurement, on as many rows as the gate compares, without samples."""
    return EvaluateConfig.parse({**settings.plain(), "max_rows": max_rows, "samples": 0})
