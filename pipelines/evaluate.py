"""Measure the trained model on the test split, beside trivial baselines."""

from rnnlm import cli
from rnnlm.stages.evaluate import run

if __name__ == "__main__":
    cli.leave(cli.main("evaluate", run, __doc__))
