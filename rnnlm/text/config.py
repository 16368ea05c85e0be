"""How text is normalised and cut into tokens."""

from typing import Literal

from pydantic import Field

from rnnlm.config import Config


class NormalizeConfig(Config):
    """What is changed in every text before it is split into tokens, in the order of the fields."""

    unicode: Literal["none", "nfc", "nfkc"] = "none"
    """Unicode normalization form."""
    whitespace: Literal["keep", "collapse"] = "keep"
    """`collapse`: strip the ends of each line and turn runs of blanks inside it into one space."""
    lowercase: bool = False

    @property
    def lossless(self) -> bool:
        """Whether the text as it stood can be had back, so that bits per byte mean something."""
        return self == NormalizeConfig()


class TokenizerConfig(Config):
    """The vocabulary. Source and target of a pair share one, which copying from the source needs."""

    kind: Literal["bpe", "word", "char"] = "bpe"
    """`bpe`: byte-level, nothing is ever unknown. `word`: split at blanks, a line ends in `<eos>`. `char`: Unicode characters."""
    vocab_size: int = Field(8_000, ge=260, le=1_000_000)
    """Entries in all, special tokens included (not used by `char`)."""
    min_frequency: int = Field(1, ge=1)
    """Words or merges seen less often in the training text are left out (not used by `char`)."""
    train_bytes: int = Field(100_000_000, ge=1_000)
    """The vocabulary is learned from a seeded sample of the train split of at most so many bytes."""
