"""Learn the vocabulary from the train split and write every split as token ids."""

from rnnlm import cli
from rnnlm.stages.tokenize_corpus import run

if __name__ == "__main__":
    cli.leave(cli.main("tokenize_corpus", run, __doc__))
