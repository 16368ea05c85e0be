"""Read a corpus, put bad rows aside with reasons, split it, and write it as Parquet."""

from rnnlm import cli
from rnnlm.stages.ingest import run

if __name__ == "__main__":
    cli.leave(cli.main("ingest", run, __doc__))
