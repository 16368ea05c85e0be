"""Train a model on the tokens of an experiment; a run that was stopped goes on."""

from rnnlm import cli
from rnnlm.stages.train import run

if __name__ == "__main__":
    cli.leave(cli.main("train", run, __doc__))
