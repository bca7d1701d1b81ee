"""Hooks of the site's build: the notebook becomes a page, and figures of ``results/`` come along."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

DOCS = Path(__file__).parent
FIGURE = re.compile(r"\]\(\.\./(results/[\w./-]+\.(?:png|svg))\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the page of the notebook with its pictures, and every figure of ``results/`` that a page shows."""
    page, resources = MarkdownExporter().from_filename(str(DOCS / "tour.ipynb"))
    files.append(File.generated(config, "tour.md", content=page))
    for name, picture in resources["outputs"].items():
        files.append(File.generated(config, name, content=picture))
    texts = [path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")]
    for name in sorted({name for text in texts for name in FIGURE.findall(text)}):
        files.append(File.generated(config, name, abs_src_path=str(DOCS.parent / name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point at the copies of figures and at the page of the notebook; in the sources links work on any forge."""
    return FIGURE.sub(r"](\1)", markdown).replace("](tour.ipynb)", "](tour.md)")
