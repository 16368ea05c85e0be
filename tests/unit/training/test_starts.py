from pathlib import Path

import pytest

from rnnlm.errors import RnnlmError
from rnnlm.storage import Store
from rnnlm.training.starts import MAX_VAIN_STARTS, PROGRESS_FILE, STARTS_FILE, Starts


def reach(folder: Store, attempt: str, step: int) -> None:
    folder.write_json(f"{attempt}/{PROGRESS_FILE}", {"step": step})


def test_steps_beyond_the_checkpoint_are_counted_once(tmp_path: Path) -> None:
    folder = Store(str(tmp_path))
    Starts(folder).begin("attempts/a", 0, 2)
    reach(folder, "attempts/a", 100)
    Starts(folder).begin("attempts/a", 80, 1)
    reach(folder, "attempts/a", 90)
    Starts(folder).begin("attempts/b", 80, 1)
    starts = Starts(folder)
    starts.begin("attempts/b", 95, 1)

    assert (starts.restarts, starts.steps_again) == (3, 30)


def test_a_training_that_comes_no_further_is_given_up(tmp_path: Path) -> None:
    folder = Store(str(tmp_path))
    Starts(folder).begin("a", 0, 2)
    for _ in range(MAX_VAIN_STARTS):
        Starts(folder).begin("a", 50, 2)
        Starts(folder).failed("MemoryError: no room")

    with pytest.raises(RnnlmError, match=r"3 times in a row after step 50.*MemoryError: no room"):
        Starts(folder).begin("a", 50, 2)
    Starts(folder).begin("a", 60, 2)


@pytest.mark.parametrize("other", [("b", 50, 2), ("a", 50, 1), ("a", 51, 2)])
def test_another_attempt_number_of_workers_or_checkpoint_is_no_vain_start(
    tmp_path: Path, other: tuple[str, int, int]
) -> None:
    folder = Store(str(tmp_path))
    for _ in range(MAX_VAIN_STARTS - 1):
        Starts(folder).begin("a", 50, 2)
    Starts(folder).begin(*other)
    Starts(folder).begin("a", 50, 2)

    assert Starts(folder).restarts == MAX_VAIN_STARTS


@pytest.mark.parametrize("damaged", ['{"a": 1}', "[1]", "[", '[{"attempt": "a"}]'])
def test_a_damaged_file_is_our_error(tmp_path: Path, damaged: str) -> None:
    (tmp_path / STARTS_FILE).write_text(damaged)

    with pytest.raises(RnnlmError, match=STARTS_FILE):
        Starts(Store(str(tmp_path)))


def test_whom_another_start_has_followed_must_not_write(tmp_path: Path) -> None:
    folder = Store(str(tmp_path))
    first, second = Starts(folder), Starts(folder)
    first.check()
    first.begin("a", 0, 1)
    first.check()
    second.begin("b", 0, 1)
    second.check()

    with pytest.raises(RnnlmError, match="another process has gone on"):
        first.check()
