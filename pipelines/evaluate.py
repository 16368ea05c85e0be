"""Measure the trained model on the test split, beside trivial baselines."""

import sys

from rnnlm import cli
from rnnlm.stages.evaluate import run

if __name__ == "__main__":
    sys.exit(cli.main("evaluate", run, __doc__))
