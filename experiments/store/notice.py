"""A notice to stop (Ctrl-C, or the SIGTERM of a cluster or a shutdown): the step at work is finished and saved first.

Only training saves on notice; whatever else is going on is interrupted at once, and training too by a second notice.
Where several processes train together, a notice to any of them counts once all have agreed to stop.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_saving = False  # whether somebody is looking out for a notice
_given = False
_together = False  # whether others must agree
_agreed = False
_aloud = True


def take_notice() -> None:
    """Have Ctrl-C and SIGTERM handled here. A Ctrl-C that the shell turned off (``&``) stays off."""
    signal.signal(signal.SIGTERM, _handle)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _handle)


@contextmanager
def looking_out(together: bool = False, aloud: bool = True) -> Iterator[None]:
    """Notices that come in the meantime are kept for ``heed``; within another ``looking_out`` they are that one's.

    Args:
        together: a notice counts once ``agree`` was called, since other processes must stop at the same step. Another
            one changes nothing: launchers and clusters may each pass on the same.
        aloud: say that a notice was heard.
    """
    global _saving, _given, _together, _agreed, _aloud
    if _saving:
        yield
        return
    _saving, _given, _together, _agreed, _aloud = True, False, together, False, aloud
    try:
        yield
        if _given:
            raise KeyboardInterrupt
    finally:
        _saving, _given, _together, _agreed, _aloud = False, False, False, False, True


def heard() -> bool:
    """Whether a notice has come to this process."""
    return _given


def agree() -> None:
    """Have a notice count here that came to this process, or to one of those it works with."""
    global _given, _agreed
    _given = _agreed = True


def given() -> bool:
    """Whether a notice has come that counts."""
    return _given and (_agreed or not _together)


def heed() -> None:
    """Stop if a notice has come that counts.

    Raises:
        KeyboardInterrupt: it has.
    """
    if given():
        raise KeyboardInterrupt


def _handle(_signal: int, _frame: object) -> None:
    global _given
    if not _saving or (_given and not _together):
        raise KeyboardInterrupt
    if _aloud and not _given:
        again = "" if _together else " Once more stops at once."
        os.write(2, f"\nstopping after this step; what is trained is saved.{again}\n".encode())
    _given = True
