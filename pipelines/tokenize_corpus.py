"""Learn the vocabulary from the train split and write every split as token ids."""

import sys

from rnnlm import cli
from rnnlm.stages.tokenize_corpus import run

if __name__ == "__main__":
    sys.exit(cli.main("tokenize_corpus", run, __doc__))
