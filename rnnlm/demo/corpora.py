"""Three corpora that need no network: what the examples, the first experiments and the tests run on.

`python_docs` is the documentation inside every CPython; `translation` and `summarization` are synthetic, made by a
seeded grammar. `python -m rnnlm.demo.corpora NAME FOLDER` writes a corpus as files.
"""

import json
import sys
from pathlib import Path
from typing import Literal, get_args

from rnnlm.demo import python_docs, summarization, translation
from rnnlm.errors import RnnlmError, UsageError

Name = Literal["python_docs", "translation", "summarization"]
Split = Literal["train", "valid", "test"]


def rows(name: Name, split: Split) -> list[dict[str, str]]:
    """The rows of one split, the same in every process.

    Returns:
        Text rows have `id`, `text` and `tags`; pairs have `id`, `source`, `target` and `tags`. Tags are joined by
        commas and may be empty.

    Raises:
        UsageError: there is no such corpus or split.
    """
    _check("corpus", name, get_args(Name))
    _check("split", split, get_args(Split))
    if name == "python_docs":
        return python_docs.rows(split)
    return translation.rows(split) if name == "translation" else summarization.rows(split)


def new_inputs(name: Name) -> list[str]:
    """Forty fresh inputs for a batch job, none of them in a split: sources of pairs, or openings of sentences.

    Raises:
        UsageError: there is no such corpus.
    """
    _check("corpus", name, get_args(Name))
    if name == "python_docs":
        return python_docs.new_inputs()
    return translation.new_inputs() if name == "translation" else summarization.new_inputs()


def write(name: Name, folder: Path) -> list[Path]:
    """Write a corpus into a folder, as `train.jsonl`, `valid.jsonl`, `test.jsonl` and `new.txt`.

    Raises:
        UsageError: there is no such corpus.
    """
    written = []
    for split in get_args(Split):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(name, split))
        written.append(_write(folder / f"{split}.jsonl", text))
    return [*written, _write(folder / "new.txt", "".join(line + "\n" for line in new_inputs(name)))]


def main(arguments: list[str]) -> int:
    """Write the corpus that two arguments name, NAME and FOLDER, and return the exit code."""
    try:
        if len(arguments) != 2:
            raise UsageError("usage: python -m rnnlm.demo.corpora NAME FOLDER")
        name, folder = arguments
        for path in write(name, Path(folder)):  # type: ignore[arg-type]
            sys.stdout.write(f"{path}\n")
    except RnnlmError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _check(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"no demo {what} is called {value!r}; there are {', '.join(known)}")


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
