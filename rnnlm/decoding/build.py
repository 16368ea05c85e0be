"""From a model to its decoder, and from the precision that is asked for to the one that is used."""

from collections.abc import Iterable

from rnnlm.decoding.config import DecodeConfig, PrecisionCheck
from rnnlm.decoding.decoder import Decoder, LanguageModelDecoder, Seq2SeqDecoder
from rnnlm.decoding.prepared import PreparedLanguageModelDecoder, PreparedSeq2SeqDecoder, is_preparable
from rnnlm.errors import UsageError
from rnnlm.models.language_model import LanguageModel
from rnnlm.models.recurrent_lm import RecurrentLanguageModel
from rnnlm.models.recurrent_seq2seq import RecurrentSeq2Seq
from rnnlm.models.seq2seq import Seq2Seq
from rnnlm.nn.products import Precision, has_fast_bf16, supports

FASTEST_FIRST: tuple[Precision, ...] = ("int8", "bf16")


def build_decoder(
    model: LanguageModel | Seq2Seq, *, pad_id: int, eos_id: int, vocab_size: int, precision: Precision = "fp32"
) -> Decoder:
    """The fastest decoder that there is for a model. Its weights may not change any more.

    Raises:
        UsageError: the model cannot be decoded in that precision, here or anywhere.
    """
    check_supported(precision)
    if is_preparable(model):
        match model:
            case RecurrentLanguageModel():
                return PreparedLanguageModelDecoder(
                    model, pad_id=pad_id, eos_id=eos_id, vocab_size=vocab_size, precision=precision
                )
            case RecurrentSeq2Seq():
                return PreparedSeq2SeqDecoder(
                    model, pad_id=pad_id, eos_id=eos_id, vocab_size=vocab_size, precision=precision
                )
    if precision != "fp32":
        raise UsageError(
            f"decode.precision: {precision} is for LSTM models on a CPU, without input feeding, residual connections "
            "and softmax cutoffs; this model decodes in 'fp32' (or 'auto')"
        )
    if isinstance(model, LanguageModel):
        return LanguageModelDecoder(model, pad_id=pad_id, eos_id=eos_id, vocab_size=vocab_size)
    return Seq2SeqDecoder(model, pad_id=pad_id, eos_id=eos_id, vocab_size=vocab_size)


def check_supported(precision: Precision) -> None:
    """Check that this CPU has the instructions.

    Raises:
        UsageError: it has not.
    """
    if not supports(precision):
        raise UsageError(f"decode.precision: this CPU has no instructions for {precision}; use 'auto' or 'fp32'")


def resolve(settings: DecodeConfig, checks: Iterable[PrecisionCheck]) -> Precision:
    """The precision that is used: under `auto` the fastest on this CPU of those that the model's checks allow.

    Args:
        settings: what is asked for.
        checks: what was measured where the model was packaged; without a check a precision is not allowed.

    Raises:
        UsageError: one was asked for by name that this CPU does not have.
    """
    if settings.precision != "auto":
        check_supported(settings.precision)
        return settings.precision
    usable = {check.precision for check in checks if check.allowed and supports(check.precision)}
    if not has_fast_bf16():
        usable.discard("bf16")
    return next((each for each in FASTEST_FIRST if each in usable), "fp32")
