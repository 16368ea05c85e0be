"""Package the trained model and register it; the gate decides whether it becomes champion."""

from rnnlm import cli
from rnnlm.stages.register import run

if __name__ == "__main__":
    cli.leave(cli.main("register", run, __doc__))
