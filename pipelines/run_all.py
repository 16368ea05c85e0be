"""The whole chain, from the corpus to a registered model; what is done already is skipped."""

import argparse
import sys
from collections.abc import Sequence

from rnnlm import cli
from rnnlm.stages.context import Surroundings
from rnnlm.stages.run_all import flush, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chain, or with `--flush` only send what waits for MLflow; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--flush" not in words:
        return cli.main("run_all", run, __doc__, words)
    parser = cli.bare_parser("run_all", __doc__)
    parser.add_argument("--flush", action="store_true", help="send what waits for a tracking server that was away")
    cli.add_shared(parser)

    def start(arguments: argparse.Namespace) -> int:
        options = cli.read_options(arguments)
        return cli.execute(
            "run_all", arguments.json, options, lambda *seen: Surroundings(options, *seen), flush
        )  # fmt: skip

    return cli.guarded("run_all", parser, start, words)


if __name__ == "__main__":
    cli.leave(main())
