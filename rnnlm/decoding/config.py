"""How text is made from a model's probabilities."""

from typing import Any, Literal

from pydantic import Field

from rnnlm.config import Config


class DecodeConfig(Config):
    """Settings of decoding. Those that the chosen method does not use have no effect and are not part of its digest."""

    method: Literal["greedy", "sample", "beam"] = "beam"
    beam_size: int = Field(5, ge=1, le=1_000)
    length_penalty: float = Field(1.0, ge=0, le=10)
    """Beam: hypotheses are ranked by log-probability / length ** length_penalty, the length counting `<eos>`."""
    temperature: float = Field(1.0, gt=0, le=100)
    """Sample: logits are divided by this."""
    top_k: int | None = Field(None, ge=1)
    """Sample: only the so many most probable tokens."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample: only the fewest tokens whose probabilities add up to this."""
    max_length: int = Field(128, ge=1, le=1_000_000)
    """Tokens made at most."""
    min_length: int = Field(0, ge=0)
    """`<eos>` is not allowed before so many tokens."""
    seed: int = Field(0, ge=0)
    """Sample: the draw of a row depends on this and the row, not on its batch."""
    batch_tokens: int = Field(4_096, ge=1)
    """Source positions decoded together, beams counted; changes speed and memory, not results."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Of the arithmetic, for LSTM models on a CPU. `auto`: the fastest that the CPU has instructions for, and that was
    measured to cost next to nothing of this model's quality where its package was made."""

    def effective(self) -> dict[str, Any]:
        """The settings that matter for the result.

        The precision is among them where it is not fp32, so that what was made before there was a choice keeps its digest.
        Whoever keeps a result of several machines under this digest puts a precision in the place of `auto` first.
        """
        used = {
            "greedy": {"method", "max_length", "min_length"},
            "beam": {"method", "max_length", "min_length", "beam_size", "length_penalty"},
            "sample": {"method", "max_length", "min_length", "temperature", "top_k", "top_p", "seed"},
        }[self.method]
        if self.precision not in ("auto", "fp32"):
            used.add("precision")
        return {key: value for key, value in self.plain().items() if key in used}


class PrecisionCheck(Config):
    """What a precision costs of a model's quality, measured on validation rows beside fp32."""

    precision: Literal["bf16", "int8"]
    metric: str
    value: float
    fp32_value: float
    rows: int
    allowed: bool
    """Whether `auto` may use it."""
