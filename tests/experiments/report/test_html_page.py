"""The report page: self-contained, complete, and usable in a browser, on a screen and on a phone."""

import json
import re
from html.parser import HTMLParser

import pytest

from browser import find_browser, open_page
from experiments.commands import report
from experiments.errors import UsageError
from experiments.report import html_page
from experiments.report.html_page import MAIN_FIGURES, MOST_BYTES, write_whole_page
from experiments.report.records import RESULTS

NAME = "quickstart"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a study of the record."""
    root = tmp_path_factory.mktemp("runs")
    assert report.main([NAME, f"--runs_root={root}"]) == 0
    return root / "figures" / NAME / "report.html"


class Links(HTMLParser):
    """Whatever a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, _tag, attrs):
        self.addresses += [value for key, value in attrs if key in ("src", "href", "srcset", "action", "data")]


def test_the_page_is_small_and_fetches_nothing(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) <= MOST_BYTES
    links = Links()
    links.feed(text)
    assert links.addresses
    assert all(link.startswith(("data:", "#")) for link in links.addresses)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttp", text)


def test_the_page_has_claims_figures_tables_provenance_and_commands(page):
    text = page.read_text(encoding="utf-8")
    for words in ("Claims and verdicts", "Training widens that gap", "Accuracy against cost", "Every measure", "Runs"):
        assert words in text
    for words in ("Notes: what could not be measured", "data hash", f"make experiment NAME={NAME}", "PROFILE=cpu"):
        assert words in text
    assert text.count("<img ") == 1 + len(list((RESULTS / NAME).glob("*.png")))


def test_a_page_of_all_studies_has_their_main_figures(page, tmp_path, monkeypatch):
    (tmp_path / "record").mkdir()
    (tmp_path / "record" / NAME).symlink_to(RESULTS / NAME)
    monkeypatch.setattr(html_page, "RESULTS", tmp_path / "record")
    text = write_whole_page(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    titles = re.findall(r'<img alt="([\w -]+) of quickstart"', text)
    assert titles == [name.replace("-", " ") for name in sorted(MAIN_FIGURES)]
    assert f"make report NAME={NAME}" in text


def test_a_study_outside_of_configs_is_told_by_its_file():
    commands = [command for command, _ in html_page._commands("mine-study", {"profile": "cpu", "seeds": 2})]
    assert commands == ["make experiment NAME=FILE.yaml PROFILE=cpu ARGS=--seeds=2", "make figures NAME=FILE.yaml"]


@pytest.mark.skipif(find_browser() is None, reason="no browser with its driver is installed")
@pytest.mark.parametrize("width", [400, 1400])
def test_in_a_browser_nothing_fails_overflows_or_is_requested(page, width):
    with open_page(page, width) as browser:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.execute_script("return [...document.images].every(image => image.naturalWidth > 0)")
        assert browser.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        urls = [request["request"]["url"] for request in sent if request["documentURL"].startswith("file:")]
        assert urls
        assert all(url.startswith(("file:", "data:")) for url in urls), urls


@pytest.mark.skipif(find_browser() is None, reason="no browser with its driver is installed")
def test_in_a_browser_tables_are_sorted_and_filtered(page):
    first = "document.querySelector('figure.table')"
    column = f"return [...{first}.querySelectorAll('tbody tr:not([hidden])')].map(row => row.cells[%d].textContent)"
    with open_page(page) as browser:
        browser.execute_script(f"{first}.querySelectorAll('th')[6].click()")
        assert browser.execute_script(column % 6) == ["17259", "22443", "31083", "58731"]
        browser.execute_script(f"{first}.querySelectorAll('th')[6].click()")
        assert browser.execute_script(column % 0) == ["dense", "groups-2", "log-4", "groups-4"]
        browser.find_element("css selector", "figure.table input").send_keys("GROUPS")
        assert browser.execute_script(column % 0) == ["groups-2", "groups-4"]
        assert browser.execute_script(f"return {first}.querySelector('output').textContent") == "2 of 4 rows"
        details = browser.find_element("css selector", ".claims details")
        details.find_element("css selector", "summary").click()
        assert "contradicted by" in details.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["nothing"], "NAME=nothing: no such study"), (["--all"], "unknown flag --all"), (["widen"], "no tables in")],
)
def test_bad_arguments_are_one_clear_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    with pytest.raises(UsageError, match=words):
        report.main([*arguments, f"--runs_root={tmp_path}"])
