"""Checkpoints whose integrity can be checked: torch's own file, with a checksum of all before it as its zip comment.

``torch.load`` reads such a file as any other. A file without the comment, from before there was one or from elsewhere,
has no checksum and is taken as it is.
"""

from __future__ import annotations

import io
import pickle
import re
import zlib
from pathlib import Path
from typing import Any

import torch

from experiments.out_of_memory import is_out_of_memory

CHECKSUM = re.compile(rb"crc32:([0-9a-f]{8})")
CHECKSUM_LENGTH = len("crc32:") + 8
END_OF_ZIP = b"PK\x05\x06"  # the last record of a zip file: 22 bytes, of which the last two count the comment's


class DamagedError(Exception):
    """A checkpoint is damaged; the message names the damage on one line."""


def to_bytes(state: dict[str, Any]) -> memoryview:
    """Return tensors and plain values as the bytes of a file with its checksum.

    torch's own writer is given memory, since it turns a full disk into an unrelated error.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    assert bytes(content[-22:-18]) == END_OF_ZIP, "torch writes zip files without a comment"
    del content
    buffer.seek(-2, io.SEEK_END)
    buffer.write(CHECKSUM_LENGTH.to_bytes(2, "little"))
    buffer.write(f"crc32:{zlib.crc32(buffer.getbuffer()):08x}".encode())
    return buffer.getbuffer()


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU: tensors and plain values alone, nothing in it is executed (``weights_only``).

    Raises:
        DamagedError: the file was changed or cut off, or holds more than tensors and plain values.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    checksum = CHECKSUM.fullmatch(content[-CHECKSUM_LENGTH:])
    if checksum and zlib.crc32(memoryview(content)[:-CHECKSUM_LENGTH]) != int(checksum[1], 16):
        raise DamagedError("its checksum does not fit its content")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DamagedError("it holds more than tensors and plain values (weights_only)") from None
    except (RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError, OSError) as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DamagedError(f"it cannot be read ({reason[:80]})") from None
    if not isinstance(state, dict):
        raise DamagedError(f"it holds {type(state).__name__} instead of a checkpoint")
    return state
