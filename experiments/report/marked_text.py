"""Blocks of a Markdown page that a command writes: between ``<!-- NAME -->`` and ``<!-- end NAME -->``."""

from __future__ import annotations

from pathlib import Path

from experiments.errors import UsageError
from experiments.store.runs import write_atomic


def replace_block(page: Path, name: str, text: str) -> bool:
    """Replace the text between the marks of a block; returns False if the page has no such marks.

    Args:
        page: the Markdown file; it may be missing.
        name: name of the block.
        text: its lines, without the marks.

    Raises:
        UsageError: the page is no UTF-8 text.
    """
    content = _read(page) if page.is_file() else ""
    start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    if start not in content or end not in content:
        return False
    before, rest = content.split(start, 1)
    after = rest.split(end, 1)[1]
    write_atomic(page, lambda file: file.write(f"{before}{start}{text.rstrip()}\n{end}{after}".encode()))
    return True


def read_block(page: Path, name: str) -> str | None:
    """Return the text between the marks of a block; None if the page has no such marks.

    Raises:
        UsageError: the page is no UTF-8 text.
    """
    content = _read(page)
    start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    return content.split(start, 1)[1].split(end, 1)[0].rstrip() if start in content and end in content else None


def _read(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{page}: no UTF-8 text: {error}") from None
