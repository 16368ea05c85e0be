"""The whole chain, from the corpus to a registered model; what is done already is skipped."""

import sys

from rnnlm import cli
from rnnlm.stages.run_all import run

if __name__ == "__main__":
    sys.exit(cli.main("run_all", run, __doc__))
