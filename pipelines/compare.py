"""Several experiments side by side: trained, scored, and drawn as quality against size, time and memory.

With `--variant model.cell=gru --variant model.cell=qrnn` they are one experiment with different settings, at equal parameters.
"""

import argparse
from collections.abc import Sequence

from rnnlm import cli
from rnnlm.stages import compare
from rnnlm.stages.context import Context


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    parser = cli.bare_parser("compare", __doc__)
    parser.add_argument(
        "words", nargs="+", metavar="EXPERIMENT.toml ... PATH=VALUE", help="experiments, then settings for all"
    )
    parser.add_argument(
        "--variant",
        metavar="'PATH=VALUE ...'",
        action="append",
        default=[],
        help="the first experiment with these settings (once for each); all members get as many parameters as it has",
    )
    cli.add_shared(parser)

    def start(arguments: argparse.Namespace) -> int:
        options = cli.read_options(arguments)
        overrides = [word for word in arguments.words if "=" in word]
        paths = [word for word in arguments.words if "=" not in word]
        chosen = compare.members(paths, overrides, arguments.variant)
        return cli.execute(
            "compare", arguments.json, options, lambda *seen: Context(chosen[0], options, *seen),
            lambda context: compare.run(context, chosen),
        )  # fmt: skip

    return cli.guarded("compare", parser, start, argv)


if __name__ == "__main__":
    cli.leave(main())
