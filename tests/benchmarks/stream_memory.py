"""Memory of writing one stream: what a process takes beyond its model after 1,000, 10,000 and 100,000 characters.

    python tests/benchmarks/stream_memory.py

An LSTM, a Transformer with a window of the length that it was trained on, and the same with a cache of everything, of the
sizes of the tinyshakespeare experiments. Each figure is of a process of its own: its largest resident set while it reads as many
characters, in windows of 256, and writes the last 64 of them, less what it had with the model alone. Weights do not matter here
and are fresh; nor does what a full cache holds, which is made as long as it will be and not read: that would take hours.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "pipelines" / "experiments"
LENGTHS = (1_000, 10_000, 100_000)
STREAMS = {
    "LSTM": ("tinyshakespeare_lstm", False),
    "Transformer, window of 256": ("tinyshakespeare_transformer", False),
    "Transformer, full cache": ("tinyshakespeare_transformer", True),
}
VOCABULARY = 68
WINDOW, WRITTEN = 256, 64


def _resident_mb(field: str) -> float:
    """VmRSS: memory that this process has now; VmHWM: the most that it had since `_forget_peak`. 10^6 bytes."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / 1e6


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def measure(name: str, is_full: bool, num_tokens: int) -> float:
    """10^6 bytes that this process takes beyond its model."""
    import torch

    from rnnlm import experiment
    from rnnlm.models.build import build_model
    from rnnlm.models.language_model import LanguageModel
    from rnnlm.models.transformer_lm import TransformerLanguageModel

    model = build_model(experiment.load(EXPERIMENTS / f"{name}.toml", ["data.train=x"]).model, VOCABULARY).eval()
    assert isinstance(model, LanguageModel)
    small = torch.ones(1, 2, dtype=torch.int64)
    with torch.inference_mode():
        model(small, model.init_state(1))  # what libraries allocate at their first call
        _forget_peak()
        before = _resident_mb("VmRSS")
        if is_full:
            assert isinstance(model, TransformerLanguageModel)
            model.context_length = num_tokens
        state = model.init_state(1)
        for _ in range(1 if is_full else (num_tokens - WRITTEN) // WINDOW):
            _, state = model(small.repeat(1, WINDOW // 2), state)
        for _ in range(WRITTEN):
            _, state = model.step(small[:, 0], state)
    return _resident_mb("VmHWM") - before


def main() -> int:
    """Measure one case, or all of them in processes of their own."""
    if len(sys.argv) > 1:
        name, is_full, num_tokens = json.loads(sys.argv[1])
        print(json.dumps(measure(name, is_full, num_tokens)))
        return 0
    print(f"| one stream, MB beyond the model | {' | '.join(f'{length:,}' for length in LENGTHS)} |")
    print("| --- " * (1 + len(LENGTHS)) + "|")
    for said, (name, is_full) in STREAMS.items():
        cells = []
        for length in LENGTHS:
            command = [sys.executable, __file__, json.dumps([name, is_full, length])]
            made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            cells.append(f"{json.loads(made.stdout):,.1f}")
        print(f"| {said} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
