"""Errors that a user can correct: the command line prints them as one line, without a traceback."""


class UsageError(Exception):
    """Invalid input: the message names the value, its place, and a right value."""


class RunFailedError(Exception):
    """A run ended without a result; the message gives the reason on one line, and other runs continue.

    Attributes:
        lasting: True if the same run would fail again anywhere, so that it is not tried again.
    """

    def __init__(self, reason: str, lasting: bool = True) -> None:
        super().__init__(reason)
        self.lasting = lasting
