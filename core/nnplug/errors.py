"""The one exception type for what a user can mend."""

from __future__ import annotations


class NnplugError(Exception):
    """A user's mistake, said in one line: what happened, where, what to do.

    The command line prints it without a traceback and exits with code 2 (``--debug`` shows the traceback).
    """
