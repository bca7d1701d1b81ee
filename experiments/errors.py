"""Errors that are the user's to mend: the command line prints them as one line, without a traceback."""


class UsageError(Exception):
    """Something the user gave cannot work: the message names the value, where it stands and what would be right."""


class RunFailedError(Exception):
    """A run ended without a result, for a reason worth one line; other runs go on.

    Attributes:
        lasting: whether the same run would fail again anywhere, so that there is no use in trying.
    """

    def __init__(self, reason: str, lasting: bool = True) -> None:
        super().__init__(reason)
        self.lasting = lasting
