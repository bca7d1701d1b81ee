"""Stop signals: Ctrl-C, and the SIGTERM of a cluster or a shutdown. The current step is finished and saved first.

Training alone saves on a signal. All other work is interrupted at once, and so is training by a second signal. Where
several processes train together, a signal to any of them takes effect once all have confirmed it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_deferred = False  # within ``deferred``
_received = False
_together = False  # other processes must confirm
_confirmed = False
_announced = True  # a signal is answered with a line


def install_handlers() -> None:
    """Handle Ctrl-C and SIGTERM in this process. A Ctrl-C that the shell has turned off (``&``) stays off."""
    signal.signal(signal.SIGTERM, _handle)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _handle)


@contextmanager
def deferred(together: bool = False, aloud: bool = True) -> Iterator[None]:
    """Keep signals that arrive meanwhile for ``raise_if_stopping``; within another ``deferred`` block, for that one.

    Args:
        together: a signal takes effect once ``confirm`` was called, since other processes must stop at the same step.
            A second signal has no effect then, since launchers and clusters may each pass on the same one.
        aloud: print a line when a signal arrives.

    Raises:
        KeyboardInterrupt: at the end of the block, if a signal has arrived.
    """
    global _deferred, _received, _together, _confirmed, _announced
    if _deferred:
        yield
        return
    _deferred, _received, _together, _confirmed, _announced = True, False, together, False, aloud
    try:
        yield
        if _received:
            raise KeyboardInterrupt
    finally:
        _deferred, _received, _together, _confirmed, _announced = False, False, False, False, True


def received() -> bool:
    """Tell if this process has received a signal."""
    return _received


def confirm() -> None:
    """Make a signal take effect that this process, or another rank, has received."""
    global _received, _confirmed
    _received = _confirmed = True


def pending() -> bool:
    """Tell if a signal has been received and takes effect."""
    return _received and (_confirmed or not _together)


def raise_if_stopping() -> None:
    """Stop if a signal has been received and takes effect.

    Raises:
        KeyboardInterrupt: it has.
    """
    if pending():
        raise KeyboardInterrupt


def _handle(_signal: int, _frame: object) -> None:
    global _received
    if not _deferred or (_received and not _together):
        raise KeyboardInterrupt
    if _announced and not _received:
        again = "" if _together else " Once more stops at once."
        os.write(2, f"\nstopping after this step; what is trained is saved.{again}\n".encode())
    _received = True
