"""List what a store no longer needs, by kind with sizes; with --yes, delete it."""

import argparse
from collections.abc import Sequence

from rnnlm import cli
from rnnlm.stages import prune
from rnnlm.stages.context import Surroundings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = cli.bare_parser("prune", __doc__)
    parser.add_argument(
        "--keep-runs", type=int, default=3, metavar="N", help="newest records of each stage that stay (3)"
    )
    parser.add_argument("--older-than", type=float, default=7.0, metavar="DAYS", help="what is younger stays (7)")
    parser.add_argument("--yes", action="store_true", help="delete what is listed")
    cli.add_shared(parser)

    def start(arguments: argparse.Namespace) -> int:
        options = cli.read_options(arguments)
        cli.at_least("--keep-runs", arguments.keep_runs, 1)
        cli.at_least("--older-than", arguments.older_than, 0)
        wanted = {"keep_runs": arguments.keep_runs, "older_than_days": arguments.older_than, "delete": arguments.yes}
        return cli.execute(
            "prune", arguments.json, options, lambda *seen: Surroundings(options, *seen),
            lambda where: prune.run(where, **wanted),
        )  # fmt: skip

    return cli.guarded("prune", parser, start, argv)


if __name__ == "__main__":
    cli.leave(main())
