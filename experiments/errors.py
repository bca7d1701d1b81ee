"""Errors that a user can correct: the command line prints them as one line, without a traceback."""


class UsageError(Exception):
    """Invalid input: the message names the value, its place, and what would be right."""


class RunFailedError(Exception):
    """A run ended without a result, for a reason worth one line; other runs go on.

    Attributes:
        lasting: whether the same run would fail again anywhere, so that it is not tried again.
    """

    def __init__(self, reason: str, lasting: bool = True) -> None:
        super().__init__(reason)
        self.lasting = lasting
