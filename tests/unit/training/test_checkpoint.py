import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rnnlm.errors import RnnlmError
from rnnlm.training import checkpoint
from rnnlm.training.checkpoint import (
    CorruptCheckpoint,
    load_checkpoint,
    newest_valid,
    read_history,
    read_state,
    read_weights,
    save_checkpoint,
)
from rnnlm.training.loop import training_steps
from rnnlm.training.state import TrainingRun, export_weights

MakeRun = Callable[..., TrainingRun]


def saved(run: TrainingRun, folder: Path, steps: int = 3) -> Path:
    for report in training_steps(run):
        if report.step == steps:
            break
    save_checkpoint(folder, run)
    return folder


@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize("algorithm", ["adamw", "sgd"])
def test_everything_comes_back(make_run: MakeRun, tmp_path: Path, ema_decay: float | None, algorithm: str) -> None:
    optim = {"ema_decay": ema_decay, "algorithm": algorithm}
    run = make_run(optim=optim)
    saved(run, tmp_path / "c")
    other = make_run(optim=optim)
    assert load_checkpoint(tmp_path / "c", other) == ()
    assert other.state == run.state
    assert other.history.columns() == run.history.columns()
    for name, tensor in run.task.carried(run.collective).items():
        assert torch.equal(other.task.carried(other.collective)[name], tensor)
    for name, parameter in run.named_parameters().items():
        twin = other.named_parameters()[name]
        assert torch.equal(parameter, twin)
        for key, value in run.optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(other.optimizer.state[twin][key], value)
    kept = read_weights(tmp_path / "c")
    assert kept.keys() == export_weights(run).keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in export_weights(run).items())
    assert (tmp_path / "c" / "ema.safetensors").exists() == (ema_decay is not None)


def test_weights_fit_a_fresh_model(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    weights = read_weights(saved(run, tmp_path))
    fresh = make_run().task.model
    fresh.load_state_dict(weights)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), run.task.model.parameters(), strict=True))


def test_what_it_says_about_itself(make_run: MakeRun, tmp_path: Path) -> None:
    described = read_state(saved(make_run(), tmp_path))
    assert described["state"]["step"] == 3
    assert described["state"]["plan"]["total_steps"] == 12
    assert described["environment"] == {
        "torch": torch.__version__,
        "device": "cpu",
        "processor": torch.backends.cpu.get_cpu_capability(),
        "precision": "fp32",
        "threads": torch.get_num_threads(),
        "workers": 1,
    }
    assert read_history(tmp_path)["step"] == [1.0, 2.0, 3.0]


def test_differences_of_the_environment_are_named(make_run: MakeRun, tmp_path: Path) -> None:
    saved(make_run(), tmp_path)
    torch.set_num_threads(2)
    run = make_run()
    torch.set_num_threads(2)
    assert load_checkpoint(tmp_path, run) == ("threads was 1, now is 2",)


def test_another_processor_is_named(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(make_run(), tmp_path)
    usual = torch.backends.cpu.get_cpu_capability()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "other")
    assert load_checkpoint(tmp_path, make_run()) == (f"processor was {usual}, now is other",)


def test_weights_that_are_not_finite_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    with torch.no_grad():
        run.named_parameters()["output_bias"][3] = float("inf")
    with pytest.raises(RnnlmError, match="output_bias has values that are not finite"):
        save_checkpoint(tmp_path / "c", run)
    assert not (tmp_path / "c").exists()


def test_a_disk_that_refuses_is_our_error(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RnnlmError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "c", make_run())


def test_saving_again_replaces_what_was_there(make_run: MakeRun, tmp_path: Path) -> None:
    saved(make_run(optim={"ema_decay": 0.9}), tmp_path, steps=2)
    run = make_run()
    saved(run, tmp_path, steps=5)
    assert read_state(tmp_path)["state"]["step"] == 5
    assert all(torch.equal(read_weights(tmp_path)[name], tensor) for name, tensor in export_weights(run).items())


def test_a_write_that_breaks_off_leaves_no_checkpoint(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    saved(run, tmp_path)

    def torn(path: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "_flush", torn)
    with pytest.raises(RnnlmError, match="no space left"):
        save_checkpoint(tmp_path, run)
    with pytest.raises(CorruptCheckpoint):
        read_weights(tmp_path)


FILES = [
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "carry.safetensors",
    "history.safetensors",
    "state.json",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_any_damage_is_found(make_run: MakeRun, tmp_path: Path, name: str, damage: str) -> None:
    optim = {"ema_decay": 0.9}
    path = saved(make_run(optim=optim), tmp_path, steps=1) / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    with pytest.raises(CorruptCheckpoint):
        load_checkpoint(tmp_path, make_run(optim=optim))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": 3}'])
def test_a_manifest_that_makes_no_sense_is_corrupt(make_run: MakeRun, tmp_path: Path, content: str) -> None:
    saved(make_run(), tmp_path, steps=1)
    (tmp_path / "checkpoint.json").write_text(content)
    with pytest.raises(CorruptCheckpoint):
        load_checkpoint(tmp_path, make_run())


def test_a_later_format_is_refused_by_its_number(make_run: MakeRun, tmp_path: Path) -> None:
    saved(make_run(), tmp_path, steps=1)
    described = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps({**described, "format": 99}))
    with pytest.raises(RnnlmError, match="format 99"):
        read_state(tmp_path, verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": {"algorithm": "sgd"}}, "optimizer AdamW, this training SGD"),
        ({"kind": "pairs"}, "of another model"),
        ({"optim": {"ema_decay": 0.9}}, "shape None in ema"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    make_run: MakeRun, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    saved(make_run(), tmp_path, steps=1)
    with pytest.raises(RnnlmError, match=message):
        load_checkpoint(tmp_path, make_run(**change))


def test_another_seed_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    saved(make_run(), tmp_path, steps=1)
    run = make_run()
    run.seed = 12
    with pytest.raises(RnnlmError, match="seed 11, this training 12"):
        load_checkpoint(tmp_path, run)


def test_newest_valid_passes_over_torn_and_foreign_folders(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    folders = [saved(run, tmp_path / f"c{steps}", steps=steps) for steps in (2, 4, 6)]
    (folders[2] / "checkpoint.json").unlink()
    (tmp_path / "empty").mkdir()
    everything = [*folders, tmp_path / "empty", tmp_path / "absent"]
    assert newest_valid(everything) == folders[1]
    shutil.rmtree(folders[1])
    assert newest_valid(everything) == folders[0]
    assert newest_valid([tmp_path / "empty"]) is None


def test_other_workers_write_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    run.collective.rank = 1  # type: ignore[misc]
    save_checkpoint(tmp_path / "c", run)
    assert not (tmp_path / "c").exists()


def test_loading_needs_no_step_in_between_to_be_saved_again(make_run: MakeRun, tmp_path: Path) -> None:
    saved(make_run(), tmp_path / "a")
    run = make_run()
    load_checkpoint(tmp_path / "a", run)
    save_checkpoint(tmp_path / "b", run)
    for name in ("model", "optimizer", "carry", "history"):
        first, second = (tmp_path / which / f"{name}.safetensors" for which in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["text", "pairs"])
@pytest.mark.parametrize("devices", [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_a_training_goes_on_on_another_device(
    make_run: MakeRun, tmp_path: Path, kind: str, devices: tuple[str, str]
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    expected = make_run(kind)
    list(training_steps(expected))
    saved(make_run(kind, device=devices[0]), tmp_path / "c")
    run = make_run(kind, device=devices[1])
    load_checkpoint(tmp_path / "c", run)
    list(training_steps(run))
    for name in ("loss_nats", "grad_norm"):
        assert run.history.columns()[name] == pytest.approx(expected.history.columns()[name], rel=1e-3)
    assert run.state.best == pytest.approx(expected.state.best, rel=1e-3)
