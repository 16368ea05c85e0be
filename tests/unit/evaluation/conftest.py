import pytest
import torch

from rnnlm.decoding.config import DecodeConfig
from rnnlm.decoding.generator import Generator
from rnnlm.models.build import build_model
from rnnlm.models.config import LanguageModelConfig, Seq2SeqConfig
from rnnlm.text.config import NormalizeConfig
from rnnlm.text.tokenizer import Tokenizer

LINES = [
    "the grey cat sleeps on the warm stone wall",
    "a small dog runs over the long green hill",
    "the old man reads a book near the window",
    "two birds sing in the tall tree at noon",
    "rain falls on the quiet town all day long",
    "she writes a letter to her friend in the north",
]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text_generator():
    tokenizer = Tokenizer.train(LINES, kind="char", vocab_size=300, min_frequency=1)
    config = LanguageModelConfig(embedding_size=8, hidden_size=12, num_layers=2)
    torch.manual_seed(0)
    model = build_model(config, tokenizer.vocab_size)
    decode = DecodeConfig(method="greedy", max_length=6)
    return Generator(model, config, tokenizer, task="text", decode=decode)


def make_pair_generator(task, attention="dot", **more):
    tokenizer = Tokenizer.train(LINES, kind="bpe", vocab_size=300, min_frequency=1)
    config = Seq2SeqConfig(
        embedding_size=8, hidden_size=8, decoder_layers=2, attention=attention, copy_source=attention != "none", **more
    )
    torch.manual_seed(1)
    model = build_model(config, tokenizer.vocab_size)
    decode = DecodeConfig(method="greedy", max_length=6)
    normalize = NormalizeConfig(whitespace="collapse")
    return Generator(model, config, tokenizer, task=task, normalize=normalize, decode=decode)


@pytest.fixture(scope="session")
def translator():
    return make_pair_generator("translate")


@pytest.fixture(scope="session")
def feeding_translator():
    return make_pair_generator("translate", input_feeding=True)


@pytest.fixture(scope="session")
def summarizer():
    return make_pair_generator("summarize")


@pytest.fixture(scope="session")
def blind_translator():
    return make_pair_generator("translate", attention="none")


@pytest.fixture
def pair_rows():
    rows = []
    for place, line in enumerate(LINES):
        target = line.replace("the", "le")
        rows.append(
            {
                "id": f"row:{place}",
                "source": line,
                "target": target,
                "num_bytes": len(target.encode()) + 1,
                "in_train": place == 2,
                "tags": "short,animal" if place < 2 else "",
            }
        )
    return rows


@pytest.fixture
def text_rows():
    return [
        {
            "id": f"doc:{place}",
            "text": line,
            "num_bytes": len(line.encode()) + 1,
            "in_train": place == 0,
            "tags": "even" if place % 2 == 0 else None,
        }
        for place, line in enumerate(LINES)
    ]
