"""Figures that other programs, or published papers, give for the same lines."""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rnnlm.evaluation.baselines import lead, longest, xz_size
from rnnlm.evaluation.bleu import bleu, chrf
from rnnlm.evaluation.dictionary import learn_dictionary
from rnnlm.evaluation.rouge import ROUGE_TYPES, rouge, row_rouge
from rnnlm.evaluation.sentences import units

DATA = Path(__file__).parents[3] / "shared" / "data"

TEXT = """The quick, brown foxes don't jump over 3.5 lazy dogs; however: running is GOOD (or "better") at 10%
Größe étude naïve well-known U.S. it's end. What? Yes!"""
WORDS = TEXT.split()


def lines(seed, count=60):
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, 25))) for _ in range(count)]


def variants(texts, seed):
    chance = random.Random(seed)
    outputs = [" ".join(word for word in text.split() if chance.random() < 0.8) for text in texts]
    outputs[3] = ""
    return outputs


REFERENCES = lines(1)
OUTPUTS = variants(REFERENCES, 2)


def run(*arguments):
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write(path, texts, end="\n"):
    path.write_text("".join(text + end for text in texts), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("tokenize", "lowercase", "flags"),
    [
        ("13a", False, []),
        ("none", True, ["--lowercase", "--chrf-lowercase"]),
    ],
)
def test_bleu_and_chrf_are_those_of_sacrebleus_command_line(tmp_path, tokenize, lowercase, flags):
    reference, output = write(tmp_path / "ref", REFERENCES), write(tmp_path / "out", OUTPUTS)
    options = ["-m", "bleu", "chrf", "-tok", tokenize, "--format", "json", "--width", "12", *flags]
    found = json.loads(run("-m", "sacrebleu", reference, "-i", output, *options))
    ours = bleu(OUTPUTS, REFERENCES, tokenize=tokenize, lowercase=lowercase)
    characters = chrf(OUTPUTS, REFERENCES, lowercase=lowercase)
    assert [score["score"] for score in found] == [pytest.approx(ours.value), pytest.approx(characters.value)]
    assert [score["signature"] for score in found] == [ours.signature, characters.signature]


def rouge_command_line(folder, outputs, references, types, delimiter):
    scores = str(folder / "scores.csv")
    run(
        "-m", "rouge_score.rouge", "--use_stemmer", "--noaggregate", f"--rouge_types={','.join(types)}",
        f"--delimiter={delimiter}", f"--output_filename={scores}",
        f"--target_filepattern={write(folder / 'ref', references, delimiter)}",
        f"--prediction_filepattern={write(folder / 'out', outputs, delimiter)}",
    )  # fmt: skip
    with Path(scores).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_rouge_is_that_of_its_command_line_on_the_same_lines(tmp_path):
    types = ("rouge1", "rouge2", "rougeL")
    rows = rouge_command_line(tmp_path, OUTPUTS, REFERENCES, types, "\n")
    for row, ours in zip(rows, row_rouge(OUTPUTS, REFERENCES), strict=True):
        assert [float(row[f"{name}-F"]) for name in types] == pytest.approx([ours[name] for name in types], abs=1e-6)
    means = {name: 100 * sum(float(row[f"{name}-F"]) for row in rows) / len(rows) for name in types}
    values = rouge(OUTPUTS, REFERENCES).values()
    assert {name: values[name] for name in types} == pytest.approx(means, abs=1e-4)


def test_rouge_lsum_is_that_of_the_command_line_with_a_sentence_a_line(tmp_path):
    split = ["\n".join(units(text)) for text in REFERENCES], ["\n".join(units(text)) for text in OUTPUTS]
    assert any("\n" in text for text in split[0])
    rows = rouge_command_line(tmp_path, split[1], split[0], ROUGE_TYPES, "@@")
    for row, ours in zip(rows, row_rouge(OUTPUTS, REFERENCES), strict=True):
        assert [float(row[f"{name}-F"]) for name in ROUGE_TYPES] == pytest.approx(list(ours.values()), abs=1e-6)


@pytest.mark.skipif(shutil.which("xz") is None, reason="the program xz is not installed")
def test_compressed_size_is_that_of_the_xz_program():
    data = "\n".join(lines(3, 2_000)).encode()
    packed = subprocess.run(["xz", "-9", "--stdout"], input=data, capture_output=True, check=True).stdout
    assert xz_size(data) == len(packed)


@pytest.mark.skipif(not (DATA / "samsum").is_dir(), reason="SAMSum is not beside the checkout")
def test_published_baselines_of_samsum():
    """Gliwa et al. 2019: Lead-3 31.4 / 8.7 / 29.4 and Longest-3 32.5 / 10.3 / 29.9, whose "ROUGE-L" is ROUGE-Lsum."""
    text = (DATA / "samsum" / "test.jsonl").read_bytes().decode()
    rows = [json.loads(line) for line in text.splitlines()]
    parts, references = [units(row["dialogue"]) for row in rows], [row["summary"] for row in rows]
    assert len(rows) == 819
    first = rouge([lead(some, 3) for some in parts], references).values()
    assert first == pytest.approx({"rouge1": 31.3, "rouge2": 8.7, "rougeL": 24.2, "rougeLsum": 29.4}, abs=0.06)
    long = rouge([longest(some, 3) for some in parts], references).values()
    assert long == pytest.approx({"rouge1": 32.3, "rouge2": 10.3, "rougeL": 24.6, "rougeLsum": 30.0}, abs=0.06)


@pytest.mark.skipif(not (DATA / "multi30k").is_dir(), reason="Multi30k is not beside the checkout")
def test_word_for_word_multi30k():
    """Most of a caption can be had word by word: a translator has to beat about 27 BLEU here, not 0.5."""
    folder = DATA / "multi30k" / "raw"
    names = ("train.de", "train.en", "test_2016_flickr.de", "test_2016_flickr.en")
    train_source, train_target, source, target = ((folder / name).read_text("utf-8").splitlines() for name in names)
    dictionary = learn_dictionary(zip(train_source, train_target, strict=True), max_links=2_000_000)
    assert 25 < bleu([dictionary.translate(line) for line in source], target).value < 29
    assert bleu(source, target).value < 1
