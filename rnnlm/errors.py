"""Every exception that users meet, and the exit code that each one becomes.

    RnnlmError                 1   anything that went wrong and is not the user's input
    ├── UsageError             2   what was asked for does not exist or makes no sense
    │   └── ConfigError        2   mistakes in the experiment, all of them at once
    ├── DataError              3   the data as a whole cannot be used
    ├── AlertError             4   everything was written, but a bound was crossed
    └── UnreachableError       1   tracking server, Ray or store cannot be reached

An interrupt is not an error: the command line turns SIGINT into 130 and SIGTERM into 143.
"""

import re
from collections.abc import Sequence

_BEFORE_HOST = re.compile(r"(?<=://)(?:[^/\s]+|[^:/\s]+:(?!\d+/)\S+)@")
"""`USER:PASSWORD@`; a slash in a password should be written as %2F, but often is not."""
_IN_QUERY = re.compile(r"([?&][\w.-]*(?:password|passwd|secret|token|key)=)[^&\s\"']+", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """A text to be shown or logged, without the credentials in its URIs."""
    return _IN_QUERY.sub(r"\1(hidden)", _BEFORE_HOST.sub("", text))


class RnnlmError(Exception):
    """Base of all errors raised on purpose. Its text is a message for the user, without a stack trace or credentials."""

    exit_code = 1

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class UsageError(RnnlmError):
    """Something that the user named is missing, unknown or out of range."""

    exit_code = 2


class ConfigError(UsageError):
    """One or more mistakes in a configuration.

    Args:
        problems: one line for each mistake, `path: what is wrong (got VALUE)`.
        origin: where the configuration came from, a file name or `command line`.
    """

    def __init__(self, problems: Sequence[str], origin: str = "") -> None:
        self.problems = tuple(problems)
        self.origin = origin
        count = len(self.problems)
        head = f"{count} mistake{'s' if count > 1 else ''} in the configuration"
        where = f" ({origin})" if origin else ""
        super().__init__("\n  ".join([head + where + ":", *self.problems]))


class DataError(RnnlmError):
    """The data is empty, not text as a whole, or has too many rejected rows."""

    exit_code = 3


class AlertError(RnnlmError):
    """The work was done and written, but a bound that the user set was crossed."""

    exit_code = 4


class UnreachableError(RnnlmError):
    """A service that the stage needs does not answer."""
