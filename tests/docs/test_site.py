"""The site: built without a warning, whole without any other server, in a phone's window and in a wide one."""

import json
import os
import re
import subprocess
import sys

import pytest

from browser import find_browser, open_page
from pages import ROOT

ELSEWHERE = re.compile(
    r"""<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^"'>]+|url\(["']?https?://"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for module in ("material", "mkdocstrings", "nbconvert"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


@pytest.mark.slow
def test_no_page_names_another_server(site):
    texts = [path for path in site.rglob("*") if path.suffix in (".html", ".css")]
    assert len(texts) > 15
    for path in texts:
        assert not ELSEWHERE.search(path.read_text(encoding="utf-8")), path


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("width", [400, 1400])
def test_pages_fit_into_a_window_and_load_whole(site, width):
    pytest.importorskip("selenium")
    if find_browser() is None:
        pytest.skip("no browser is installed")
    with open_page(site / "index.html", width) as window:
        for page in sorted(site.rglob("*.html")):
            if page.name == "404.html":  # for a server: its paths are absolute
                continue
            window.get(page.as_uri())
            wide, inner = window.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
            assert wide <= inner, page
            assert not window.get_log("browser"), page
            images = "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
            assert window.execute_script(images), page
        urls = [json.loads(entry["message"])["message"] for entry in window.get_log("performance")]
        asked = {u["params"]["request"]["url"] for u in urls if u["method"] == "Network.requestWillBeSent"}
        assert not [url for url in asked if url.startswith(("http:", "https:"))]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_search_finds_a_page_that_is_opened_as_a_file(site):
    pytest.importorskip("selenium")
    if find_browser() is None:
        pytest.skip("no browser is installed")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    with open_page(site / "index.html") as window:
        field = window.find_element(By.CSS_SELECTOR, "input.md-search__input")
        field.click()
        field.send_keys("lesion")
        results = WebDriverWait(window, 30).until(lambda w: w.find_elements(By.CSS_SELECTOR, ".md-search-result__link"))
        assert any("results.html" in link.get_attribute("href") for link in results)
