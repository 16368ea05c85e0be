import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnlm.errors import RnnlmError
from rnnlm.text import bpe
from rnnlm.text.tokenizer import EOS_ID, PAD_ID, UNK_ID, Tokenizer

PTB = Path(__file__).parents[4] / "shared" / "data" / "ptb"
TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "the dog sleeps, the fox does not\n    it runs\n    it hides\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich <eos> <pad>",
    "def f(x):\n        return x\n\ndef g(x):\n        return f(x)\n",
]
BLANKS = " \n\t\r\v\f\x1c\x1f\x85\u00a0\u2003\u2028\u3000\u180e\u200b"
SPECIAL_TEXT = st.lists(
    st.one_of(
        st.text(),
        st.text(BLANKS + "a1!'"),
        st.sampled_from(["<eos>", "<pad>", "<unk>", "\n", "  ", "the", "it's", "\r\n", " fox"]),
    )
)


def train(kind, texts=TEXTS, vocab_size=400, min_frequency=1):
    return Tokenizer.train(iter(texts), kind=kind, vocab_size=vocab_size, min_frequency=min_frequency)


@pytest.fixture(scope="module", params=["bpe", "word", "char"])
def tokenizer(request):
    return train(request.param)


BPE = train("bpe")
WORD = train("word")
CHAR = train("char")


def test_ids_of_special_tokens():
    assert (PAD_ID, EOS_ID, UNK_ID) == (0, 1, 2)
    assert [BPE.token(0), BPE.token(1), BPE.unk_id] == ["<pad>", "<eos>", None]
    for closed in (WORD, CHAR):
        assert [closed.token(number) for number in range(3)] == ["<pad>", "<eos>", "<unk>"]
        assert closed.unk_id == UNK_ID
    assert [BPE.lossless, WORD.lossless, CHAR.lossless] == [True, False, False]
    assert [BPE.keeps_blanks, WORD.keeps_blanks, CHAR.keeps_blanks] == [True, False, True]


@settings(max_examples=50, deadline=None)
@given(SPECIAL_TEXT.map("".join))
def test_bpe_gives_every_text_back(text):
    (ids,) = BPE.encode([text])
    assert ids.dtype == np.int32
    assert not np.isin(ids, [PAD_ID, EOS_ID]).any()
    assert BPE.decode([ids]) == [text]


def test_bpe_merges_never_make_a_special_token():
    greedy = train("bpe", ["<eos><pad><eos>" * 50], vocab_size=10_000)
    (ids,) = greedy.encode(["<eos><pad>"])
    assert ids.min() > EOS_ID
    assert greedy.decode([ids]) == ["<eos><pad>"]


def test_bpe_is_smaller_where_merges_run_out():
    assert train("bpe", ["aab"], vocab_size=10_000).vocab_size == 258 + 2
    assert BPE.vocab_size <= 400


def test_bpe_min_frequency_leaves_rare_merges_out():
    assert train("bpe", ["ab ab cd"], min_frequency=2).vocab_size < train("bpe", ["ab ab cd"]).vocab_size


def test_bpe_joins_line_break_and_indentation():
    (ids,) = BPE.encode(["x):\n        return"])
    assert "\n       " in [BPE.token(token) for token in ids]


def test_bpe_shows_part_of_a_character_in_hexadecimal():
    (ids,) = BPE.encode(["\u4e2d"])
    assert [BPE.token(token) for token in ids] == ["<0xE4>", "<0xB8>", "<0xAD>"]
    with pytest.raises(IndexError, match="vocabulary"):
        BPE.token(BPE.vocab_size)


def test_bpe_decodes_broken_bytes_to_replacement_characters():
    (ids,) = BPE.encode(["\u4e2d"])
    assert "\ufffd" in BPE.decode([ids[:2]])[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(SPECIAL_TEXT.map("".join)), st.integers(1, 12), st.integers(1, 30), st.sampled_from([1, 1 << 20]))
def test_ids_are_those_of_the_library(texts, piece, group, cache):
    library = tokenizers.Tokenizer.from_str(BPE.to_json())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "_PIECE_CHARACTERS", piece)
        patch.setattr(bpe, "_GROUP_CHARACTERS", group)
        patch.setattr(bpe, "_CACHE_SIZE", cache)
        assert ["".join(bpe.pieces(text)) for text in texts] == texts
        encoded = BPE.encode(texts)
        documents = BPE.encode_documents(texts)
    for text, ids, document in zip(texts, encoded, documents, strict=True):
        assert ids.tolist() == library.encode(text).ids
        assert document.tolist() == [*ids.tolist(), EOS_ID]
        assert ids.flags.writeable


def test_long_prose_is_cut():
    assert len(bpe.pieces("one two\nthree " * 300_000)) == 5
    assert len(bpe.pieces("x" * 3_000_000)) == 1


def test_word_ids_are_by_frequency_then_alphabet():
    words = train("word", ["b a c\na c c <unk> <eos> <pad>"])
    assert [words.token(number) for number in range(words.vocab_size)] == ["<pad>", "<eos>", "<unk>", "c", "a", "b"]
    assert train("word", ["b a c\na c c"], vocab_size=4).vocab_size == 4
    assert train("word", ["b a c\na c c"], min_frequency=2).vocab_size == 5


def test_word_lines_end_in_eos_once():
    words = train("word", ["a b"])
    documents = words.encode_documents(["a b\na", "a b\na\n", " a  \r\n\n", "", "a\n\n"])
    assert [ids.tolist() for ids in documents] == [[3, 4, 1, 3, 1], [3, 4, 1, 3, 1], [3, 1, 1], [1], [3, 1, 1]]
    assert [ids.tolist() for ids in words.encode(["a b\na\n", ""])] == [[3, 4, 3], []]
    assert [ids.tolist() for ids in words.encode_prompts(["a\nb", "a\n", ""])] == [[3, 1, 4], [3, 1], []]


def test_word_specials_in_text():
    words = train("word", ["a b"])
    assert words.encode(["<eos> <pad> <unk> zzz a"])[0].tolist() == [2, 2, 2, 2, 3]


def test_word_decode_turns_eos_into_newlines():
    words = train("word", ["a b"])
    assert words.decode([[3, 4, 1, 1, 4, 2, 1, 0, 0], [], [1], [1, 3]]) == ["a b\n\nb <unk>", "", "", "\na"]


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_char_gives_known_characters_back(text):
    characters = train("char", [text])
    (ids,) = characters.encode_documents([text])
    assert ids.dtype == np.int32
    assert ids[-1] == EOS_ID
    assert (ids[:-1] > UNK_ID).all()
    assert characters.decode([ids]) == [text]


def test_char_unknown_characters():
    characters = train("char", ["ac\n"])
    assert characters.vocab_size == 6
    assert characters.encode(["a\nbc\U0010ffff"])[0].tolist() == [4, 3, 2, 5, 2]
    assert characters.decode([[4, 2, 0, 1]]) == ["a\ufffd"]
    assert characters.token(3) == "\n"


def test_documents_end_in_eos_and_prompts_do_not(tokenizer):
    texts = ["the fox", "it runs\nit hides"]
    for document, prompt in zip(tokenizer.encode_documents(texts), tokenizer.encode_prompts(texts), strict=True):
        assert document[-1] == EOS_ID
        assert document[:-1].tolist() == prompt.tolist()
    assert tokenizer.decode(tokenizer.encode_documents(texts)) == texts


def test_lists_of_numbers_are_decoded(tokenizer):
    assert tokenizer.decode([tokenizer.encode(["the fox"])[0].tolist()]) == ["the fox"]


def test_training_is_deterministic(tokenizer):
    again = train(tokenizer.kind)
    assert again.to_json() == tokenizer.to_json()
    assert again.digest == hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


def test_file_gives_the_same_tokenizer(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    copies = [Tokenizer.from_file(path), pickle.loads(pickle.dumps(tokenizer))]
    for copy in copies:
        assert (copy.kind, copy.vocab_size, copy.unk_id) == (tokenizer.kind, tokenizer.vocab_size, tokenizer.unk_id)
        assert copy.digest == hashlib.sha256(path.read_bytes()).hexdigest()
        assert copy.encode(TEXTS)[1].tolist() == tokenizer.encode(TEXTS)[1].tolist()


def test_library_reads_the_file_and_agrees(tokenizer):
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    for text in ["the quick fox runs", "the zebra does not hide"]:
        assert library.encode(text).ids == tokenizer.encode([text])[0].tolist()


def broken(change):
    state = json.loads(WORD.to_json())
    change(state)
    return json.dumps(state)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        broken(lambda state: state["model"]["vocab"].update({"<eos>": 0, "<pad>": 1})),
        broken(lambda state: state.update(added_tokens=[{"id": 0}])),
        broken(lambda state: state.update(pre_tokenizer={"type": "Digits"})),
        broken(lambda state: state.update(pre_tokenizer=None)),
    ],
)
def test_foreign_files_are_refused(text, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(RnnlmError, match=r"tokenizer\.json"):
        Tokenizer.from_file(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(RnnlmError, match=r"absent\.json"):
        Tokenizer.from_file(tmp_path / "absent.json")


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unigram"):
        train("unigram")


def test_forked_process_neither_warns_nor_hangs():
    script = (
        "import os\n"
        "from rnnlm.text.tokenizer import Tokenizer\n"
        "texts = ['a few words of text'] * 20000\n"
        "tokenizer = Tokenizer.train(texts, kind='bpe', vocab_size=300, min_frequency=1)\n"
        "tokenizer.encode(texts)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(len(tokenizer.encode(texts)) != 20000)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not PTB.is_dir(), reason="the Penn Treebank is not beside the checkout")
def test_penn_treebank_counts():
    splits = {split: (PTB / f"ptb.{split}.txt").read_text() for split in ("train", "valid", "test")}
    words = train("word", [splits["train"]], vocab_size=20_000)
    assert words.vocab_size == 10_000 + 1
    for split, expected in {"train": 929_589, "valid": 73_760, "test": 82_430}.items():
        lines = splits[split].removesuffix("\n").split("\n")
        assert len(words.encode_documents([splits[split]])[0]) == expected
        assert sum(len(ids) for ids in words.encode_documents(lines)) == expected
