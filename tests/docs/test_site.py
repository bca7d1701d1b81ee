"""The site: built without a warning, and without a request to any other server."""

import os
import re
import subprocess
import sys

import pytest

from pages import ROOT

ELSEWHERE = re.compile(
    r"""<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^"'>]+|url\(["']?https?://"""
)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_no_other_server(tmp_path):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("nbconvert")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    texts = [path for path in tmp_path.rglob("*") if path.suffix in (".html", ".css")]
    assert len(texts) > 15
    for path in texts:
        assert not ELSEWHERE.search(path.read_text(encoding="utf-8")), path
