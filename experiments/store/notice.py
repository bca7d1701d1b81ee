"""A notice to stop (Ctrl-C, or the SIGTERM of a cluster or a shutdown): the step at work is finished and saved first.

Only training saves on notice; whatever else is going on is interrupted at once, and training too by a second notice.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_saving = False  # whether somebody is looking out for a notice
_given = False


def take_notice() -> None:
    """Have Ctrl-C and SIGTERM handled here. A Ctrl-C that the shell turned off (``&``) stays off."""
    signal.signal(signal.SIGTERM, _handle)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _handle)


@contextmanager
def looking_out() -> Iterator[None]:
    """Notices that come in the meantime are kept for ``heed``."""
    global _saving, _given
    _saving, _given = True, False
    try:
        yield
        heed()
    finally:
        _saving, _given = False, False


def given() -> bool:
    """Whether a notice has come."""
    return _given


def heed() -> None:
    """Stop if a notice has come.

    Raises:
        KeyboardInterrupt: it has.
    """
    if _given:
        raise KeyboardInterrupt


def _handle(_signal: int, _frame: object) -> None:
    global _given
    if not _saving or _given:
        raise KeyboardInterrupt
    _given = True
    os.write(2, b"\nstopping after this step; what is trained is saved. Once more stops at once.\n")
