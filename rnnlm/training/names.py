"""The keys of all metrics, in one place."""

TRAIN_LOSS = "train/loss_nats"
"""Nats a token of the training batches, dropout included, without label smoothing."""
VALID_PERPLEXITY = "valid/perplexity"
VALID_PERPLEXITY_LANED = "valid/perplexity_laned"
"""The quick figure during training: the split is cut into many lanes that each start without context."""
VALID_BITS_PER_BYTE = "valid/bits_per_byte"
TEST_PERPLEXITY = "test/perplexity"
TEST_BITS_PER_BYTE = "test/bits_per_byte"
TEST_BLEU = "test/bleu"
TEST_CHRF = "test/chrf"
TEST_ROUGE_1 = "test/rouge1"
TEST_ROUGE_2 = "test/rouge2"
TEST_ROUGE_L = "test/rougeL"
LEARNING_RATE = "optim/learning_rate"
GRAD_NORM = "optim/grad_norm"
"""L2 norm of the gradient of the mean loss, before clipping."""
TOKENS_PER_SECOND = "throughput/tokens_per_second"
"""Real target tokens of all workers by the wall time of the steps; validation and checkpoints apart."""
PEAK_MEMORY = "memory/workers_peak_mb"
"""Most memory of all training processes together, in 10^6 bytes: the sum of each one's largest resident set."""
NUM_PARAMETERS = "model/parameters"
NUM_LAYER_PARAMETERS = "model/parameters_without_embeddings"
STEPS_AGAIN = "train/steps_again"
"""Steps that were taken again after restarts, as they lay beyond the last checkpoint; at least so many."""
PADDING_SHARE = "data/padding_share"


def phase_seconds(phase: str) -> str:
    """The key of the wall time of a phase, for instance `time/train_s`."""
    return f"time/{phase}_s"


def baseline(name: str, metric: str) -> str:
    """The key of a trivial baseline's figure, for instance `baseline/copy_source/bleu`."""
    return f"baseline/{name}/{metric}"
