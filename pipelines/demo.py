"""Three small generators from corpora that need no network: trained, measured, registered, and run over new input."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rnnlm import cli
from rnnlm.stages import demo
from rnnlm.stages.context import Context

EXPERIMENTS = Path(__file__).parent / "experiments"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tour; returns the exit code."""
    parser = cli.bare_parser("demo", __doc__)
    cli.add_shared(parser)

    def start(arguments: argparse.Namespace) -> int:
        options = cli.read_options(arguments)
        first = demo.first_experiment(EXPERIMENTS)
        return cli.execute(
            "demo", arguments.json, options, lambda *seen: Context(first, options, *seen),
            lambda context: demo.run(context, EXPERIMENTS),
        )  # fmt: skip

    return cli.guarded("demo", parser, start, argv)


if __name__ == "__main__":
    cli.leave(main())
