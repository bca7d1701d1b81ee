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
_received = False
_together = False  # whether others must agree
_confirmed = False
_aloud = True


def install_handlers() -> None:
    """Have Ctrl-C and SIGTERM handled here. A Ctrl-C that the shell turned off (``&``) stays off."""
    signal.signal(signal.SIGTERM, _handle)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _handle)


@contextmanager
def deferred(together: bool = False, aloud: bool = True) -> Iterator[None]:
    """Keep signals that arrive meanwhile for ``raise_if_stopping``; within another ``deferred`` block, for that one.

    Args:
        together: a notice counts once ``confirm`` was called, since other processes must stop at the same step. Another
            one changes nothing: launchers and clusters may each pass on the same.
        aloud: say that a notice was heard.
    """
    global _saving, _received, _together, _confirmed, _aloud
    if _saving:
        yield
        return
    _saving, _received, _together, _confirmed, _aloud = True, False, together, False, aloud
    try:
        yield
        if _received:
            raise KeyboardInterrupt
    finally:
        _saving, _received, _together, _confirmed, _aloud = False, False, False, False, True


def received() -> bool:
    """Whether a notice has come to this process."""
    return _received


def confirm() -> None:
    """Have a notice count here that came to this process, or to one of those it works with."""
    global _received, _confirmed
    _received = _confirmed = True


def pending() -> bool:
    """Whether a notice has come that counts."""
    return _received and (_confirmed or not _together)


def raise_if_stopping() -> None:
    """Stop if a notice has come that counts.

    Raises:
        KeyboardInterrupt: it has.
    """
    if pending():
        raise KeyboardInterrupt


def _handle(_signal: int, _frame: object) -> None:
    global _received
    if not _saving or (_received and not _together):
        raise KeyboardInterrupt
    if _aloud and not _received:
        again = "" if _together else " Once more stops at once."
        os.write(2, f"\nstopping after this step; what is trained is saved.{again}\n".encode())
    _received = True
