"""Search settings; the best become an experiment of their own, best.toml."""

from rnnlm import cli
from rnnlm.stages.tune import run

if __name__ == "__main__":
    cli.leave(cli.main("tune", run, __doc__))
