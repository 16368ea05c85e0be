"""Generate for every row of the input files, with a registered model or one in a folder."""

import argparse
from collections.abc import Sequence

from rnnlm import cli
from rnnlm.console import Console
from rnnlm.errors import UsageError
from rnnlm.interrupts import Interrupts
from rnnlm.stages import generate
from rnnlm.stages.context import Surroundings


def parser() -> argparse.ArgumentParser:
    """The arguments of this stage, which takes a model instead of an experiment."""
    result = cli.bare_parser("generate", __doc__)
    result.add_argument("--model", required=True, help="models:/NAME@ALIAS, models:/NAME/VERSION, or a folder")
    result.add_argument("--input", required=True, nargs="+", metavar="PATH", help="files or globs")
    result.add_argument("--output", required=True, metavar="URI", help="folder that receives run=KEY/part-*.parquet")
    result.add_argument("overrides", metavar="PATH=VALUE", nargs="*", help="decode.* and generate.* settings")
    cli.add_shared(result)
    result.add_argument("--check", action="store_true", help="validate model and input; write nothing")
    result.add_argument("--verify", action="store_true", help="check a finished output against manifest and input")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""

    def start(arguments: argparse.Namespace) -> int:
        if arguments.from_run is not None:
            raise UsageError("--from: means nothing here, as no record is read; name the model by --model")
        if arguments.force and arguments.verify:
            raise UsageError("--force: does not go with --verify, which writes nothing")
        options = cli.read_options(arguments)
        request = generate.request(
            arguments.model, arguments.input, arguments.output, arguments.overrides, options.base
        )
        if arguments.check:
            quiet = Surroundings(options, Console(), Interrupts())
            return cli.execute_check("generate", arguments.json, lambda: generate.check(request, quiet))
        return cli.execute(
            "generate", arguments.json, options, lambda *seen: Surroundings(options, *seen),
            lambda where: (generate.verify if arguments.verify else generate.run)(request, where),
        )  # fmt: skip

    return cli.guarded("generate", parser(), start, argv)


if __name__ == "__main__":
    cli.leave(main())
