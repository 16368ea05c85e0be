"""From text to text: a model, its tokenizer and its decoding settings in one object."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch

from rnnlm.decoding.beam import beam_search
from rnnlm.decoding.build import build_decoder, resolve
from rnnlm.decoding.config import DecodeConfig, PrecisionCheck
from rnnlm.decoding.decoder import Decoded, Decoder
from rnnlm.decoding.sampling import Choose, decode_steps, most_probable, random_choice, row_key, steps
from rnnlm.errors import UsageError
from rnnlm.models.config import ModelConfig
from rnnlm.models.language_model import LanguageModel
from rnnlm.models.seq2seq import Seq2Seq
from rnnlm.nn.products import Precision
from rnnlm.text.config import NormalizeConfig
from rnnlm.text.normalize import normalize
from rnnlm.text.tokenizer import Tokenizer

Task = Literal["text", "translate", "summarize"]

_MIN_POSITIONS = 16
"""A row counts as at least so many positions in a batch, which bounds the rows of one step where inputs are short."""
_WAIT = 16
"""Tokens that a stream holds back at most until a character is complete."""
_IMPLIED_METHOD = {
    "beam_size": "beam",
    "length_penalty": "beam",
    "temperature": "sample",
    "top_k": "sample",
    "top_p": "sample",
}


@dataclass(frozen=True)
class Output:
    """What was made for one input."""

    text: str
    score: float | None
    """Mean log-probability of the tokens made under the model, in nats, `<eos>` counted; None where nothing was decoded."""
    num_tokens: int
    """Tokens made, `<eos>` counted."""
    truncated: bool
    """Cut at `max_length`."""
    status: Literal["ok", "empty"] = "ok"
    """`empty`: the source has no text, so that there is nothing to translate or to summarize."""


class Generator:
    """Continues prompts (task `text`), or answers sources (`translate`, `summarize`).

    Args:
        model: the network; it is put into evaluation mode.
        model_config: what the network was built from.
        tokenizer: its vocabulary.
        task: what it was trained for.
        normalize: what was done to every text in training, and is done to every input.
        decode: settings used where a call gives none.
        lineage: JSON-compatible facts about where the model came from; kept in its package.
        precision_checks: what was measured of precisions below fp32; without it `auto` is fp32. Kept in its package.
    """

    def __init__(
        self,
        model: LanguageModel | Seq2Seq,
        model_config: ModelConfig,
        tokenizer: Tokenizer,
        *,
        task: Task,
        normalize: NormalizeConfig | None = None,
        decode: DecodeConfig | None = None,
        lineage: Mapping[str, Any] | None = None,
        precision_checks: Sequence[PrecisionCheck] = (),
    ) -> None:
        self.model = model.eval()
        self.model_config = model_config
        self.tokenizer = tokenizer
        self.task: Task = task
        self.normalize = normalize or NormalizeConfig()
        self.decode = decode or DecodeConfig()
        self.lineage: dict[str, Any] = dict(lineage or {})
        self.golden: list[dict[str, Any]] = []
        """Inputs and outputs that came with the package, checked by `rnnlm.package.verify_golden`."""
        self.precision_checks = tuple(precision_checks)
        self._decoders: dict[Precision, Decoder] = {}

    def __repr__(self) -> str:
        return f"Generator(task={self.task!r}, model={self.model_config!r}, vocab_size={self.tokenizer.vocab_size})"

    @overload
    def __call__(self, text: str, **options: Any) -> str: ...

    @overload
    def __call__(self, text: Sequence[str], **options: Any) -> list[str]: ...

    def __call__(self, text: str | Sequence[str], **options: Any) -> str | list[str]:
        """Make text.

        Args:
            text: one prompt or source, or several. The prompt is not part of the result.
            options: fields of `DecodeConfig` that differ from this generator's (see `settings`).

        Returns:
            A string for a string, a list for a list.

        Raises:
            UsageError: an unknown option, a value out of range, or something that is not text.
        """
        texts = [text] if isinstance(text, str) else _checked(text)
        outputs = [output.text for output in self.generate(texts, self.settings(**options))]
        return outputs[0] if isinstance(text, str) else outputs

    def settings(self, **options: Any) -> DecodeConfig:
        """This generator's decoding settings with `options` laid over them; None leaves a setting as it is.

        An option of one method chooses that method: `beam_size=4` decodes by beam, `temperature=0.7` by sampling.

        Raises:
            UsageError: an unknown option, a value out of range, or options of two methods.
        """
        given = {name: value for name, value in options.items() if value is not None}
        implied = {_IMPLIED_METHOD[name]: name for name in given if name in _IMPLIED_METHOD}
        if "method" not in given and len(implied) == 1:
            given["method"] = next(iter(implied))
        method = given.get("method", self.decode.method)
        unused = [name for other, name in implied.items() if other != method]
        if unused and method in ("greedy", "sample", "beam"):
            raise UsageError(f"{unused[0]}: has no effect with method {method!r}")
        return DecodeConfig.parse({**self.decode.plain(), **given}, "decoding options")

    def decoder(self, settings: DecodeConfig | None = None) -> Decoder:
        """What decodes with these settings, made when it is first asked for; from then on the weights may not change.

        Raises:
            UsageError: the precision that is asked for is not to be had, for this model or on this machine.
        """
        precision = resolve(settings or self.decode, self.precision_checks)
        if precision not in self._decoders:
            ids = {"pad_id": self.tokenizer.pad_id, "eos_id": self.tokenizer.eos_id}
            size = self.tokenizer.vocab_size
            self._decoders[precision] = build_decoder(self.model, **ids, vocab_size=size, precision=precision)
        return self._decoders[precision]

    def generate(
        self, texts: Sequence[str], settings: DecodeConfig | None = None, *, keys: Sequence[str] | None = None
    ) -> list[Output]:
        """Make text for many inputs; results are in their order and do not depend on how they are batched.

        Args:
            texts: prompts or sources.
            settings: how to decode; the generator's own by default.
            keys: identity of each row behind its random draws. By default it is the text and how often that text came
                before in `texts`, so that a repeated prompt gets another sample.
        """
        settings = settings or self.decode
        texts = _checked(texts)
        rows = self._encode(texts)
        numbers = [row_key(key) for key in (keys if keys is not None else _occurrences(texts))]
        outputs = [Output("", None, 0, truncated=False, status="empty")] * len(texts)
        for batch in self._batches(rows, settings):
            decoded = self._decode([rows[row] for row in batch], [numbers[row] for row in batch], settings)
            for place, (row, text) in enumerate(zip(batch, self._texts(decoded.tokens), strict=True)):
                ended = decoded.ended[place]
                num_tokens = len(decoded.tokens[place]) + ended
                outputs[row] = Output(text, decoded.mean_log_prob(place), num_tokens, truncated=not ended)
        return outputs

    def plan(self, texts: Sequence[str], settings: DecodeConfig | None = None) -> list[list[int]]:
        """The batches that `generate` makes of these inputs, as places in `texts`; blank sources are in none.

        A batch that is given to `generate` by itself is decoded as it would have been among the others.
        """
        return list(self._batches(self._encode(_checked(texts)), settings or self.decode))

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Make text piece by piece, in constant memory; the pieces joined are what a call with the same options returns.

        With the precision `auto` a stream is made in fp32, which is the fastest for a single row, and a call may not be.

        Raises:
            UsageError: beam search was asked for, which knows its answer only at the end.
        """
        settings = self.settings(**options)
        if settings.precision == "auto":
            settings = settings.model_copy(update={"precision": "fp32"})
        if settings.method == "beam":
            raise UsageError("method: a beam cannot be streamed; use 'sample' or 'greedy'")
        texts = _checked([prompt])
        row = self._encode(texts)[0]
        if row is not None:
            yield from self._pieces(row, row_key(_occurrences(texts)[0]), settings)

    def first_log_probs(self, text: str) -> np.ndarray | None:
        """Log-probabilities of the first token made for a text, [V] in float32; None for a blank source."""
        row = self._encode(_checked([text]))[0]
        if row is None:
            return None
        decoder = self.decoder(self.settings(precision="fp32"))
        with torch.inference_mode():
            next_token, _ = decoder.step(*decoder.start([row]))
            return np.asarray(next_token.log_probs()[0].cpu().numpy())

    def save(self, path: str | Path) -> Path:
        """Write the model package (weights, vocabulary, settings, golden outputs) into the folder `path`."""
        from rnnlm.package import save_package

        return save_package(path, self)

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray | None]:
        """Token ids of each input, without `<eos>`; None for a blank source."""
        options = self.normalize.model_dump()
        texts = [normalize(text, **options) for text in texts]
        if self.task == "text":
            return list(self.tokenizer.encode_prompts(texts))
        sources = self.tokenizer.encode(texts)
        return [row if text.strip() and len(row) else None for text, row in zip(texts, sources, strict=True)]

    def _batches(self, rows: Sequence[np.ndarray | None], settings: DecodeConfig) -> Iterator[list[int]]:
        """Rows of similar length, the longest first, at most `batch_tokens` positions together."""
        width = settings.beam_size if settings.method == "beam" else 1
        batch: list[int] = []
        size = -1
        lengths = {place: len(row) for place, row in enumerate(rows) if row is not None}
        for place in sorted(lengths, key=lambda place: (-lengths[place], place)):
            if batch and (len(batch) + 1) * width * max(size, _MIN_POSITIONS) > settings.batch_tokens:
                yield batch
                batch = []
            if not batch:
                size = lengths[place] + 1
            batch.append(place)
        if batch:
            yield batch

    def _texts(self, rows: Sequence[np.ndarray]) -> list[str]:
        return self.tokenizer.decode([row.tolist() for row in rows])

    def _decode(self, rows: Sequence[np.ndarray | None], keys: Sequence[int], settings: DecodeConfig) -> Decoded:
        decoder = self.decoder(settings)
        with torch.inference_mode():
            start = decoder.start([row for row in rows if row is not None])
        max_length, min_length = settings.max_length, settings.min_length
        if settings.method == "beam":
            return beam_search(
                decoder,
                start,
                beam_size=settings.beam_size,
                length_penalty=settings.length_penalty,
                max_length=max_length,
                min_length=min_length,
            )
        choose = _choice(settings, keys)
        return decode_steps(decoder, start, choose, max_length=max_length, min_length=min_length)

    def _pieces(self, row: np.ndarray, key: int, settings: DecodeConfig) -> Iterator[str]:
        decoder = self.decoder(settings)
        with torch.inference_mode():
            start = decoder.start([row])
        limits = {"max_length": settings.max_length, "min_length": settings.min_length}
        window: list[int] = []
        shown = ""
        for step in steps(decoder, start, _choice(settings, [key]), **limits):
            token = int(step.tokens_A[0])
            if token == self.tokenizer.eos_id:
                break
            window.append(token)
            text = self.tokenizer.decode([window])[0]
            # A character may be spread over several byte-level tokens: wait for the rest of it.
            if text.endswith("\ufffd") and len(window) < _WAIT:
                continue
            yield text[len(shown) :]
            # The last token stays in the window, so that a blank that is only written between two tokens is not lost.
            window = [token]
            shown = self.tokenizer.decode([window])[0]
        rest = self.tokenizer.decode([window])[0][len(shown) :]
        if rest:
            yield rest


def _choice(settings: DecodeConfig, keys: Sequence[int]) -> Choose:
    """How a step's tokens are chosen where there is no beam."""
    if settings.method == "greedy":
        return most_probable
    return random_choice(
        seed=settings.seed,
        keys=keys,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
    )


def _checked(texts: Sequence[str]) -> list[str]:
    """A list of strings, or an error that names the first thing that is none."""
    if isinstance(texts, str | bytes) or not hasattr(texts, "__iter__"):
        raise UsageError(f"text: should be a string or a list of strings (got {type(texts).__name__})")
    texts = list(texts)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise UsageError(f"text {place}: should be a string (got {type(text).__name__})")
    return texts


def _occurrences(texts: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    keys = []
    for text in texts:
        keys.append(f"{seen[text]}\0{text}")
        seen[text] += 1
    return keys
