"""Search settings; the best become an experiment of their own, best.toml."""

import sys

from rnnlm import cli
from rnnlm.stages.tune import run

if __name__ == "__main__":
    sys.exit(cli.main("tune", run, __doc__))
