"""The pages of the documentation as tests read them: text, blocks of code, links."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Page:
    """A Markdown page: its name from the top of the checkout, and its text."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    def blocks(self, *languages: str) -> list[str]:
        """Blocks of code in one of the languages."""
        return [code for language, code in FENCE.findall(self.text) if language in languages]

    def prose(self) -> str:
        """The text without its blocks of code."""
        return FENCE.sub("", self.text)

    def links(self) -> list[str]:
        return LINK.findall(self.prose())

    def code(self) -> list[str]:
        """Code within sentences."""
        return CODE.findall(self.prose())

    def anchors(self) -> set[str]:
        """Anchors of the headings, as the site and forges make them."""
        titles = re.findall(r"^#+ (.*)$", self.prose(), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def page(name: str) -> Page:
    path = ROOT / name
    return Page(path, path.read_text(encoding="utf-8"))


def pages() -> list[Page]:
    return [Page(path, path.read_text(encoding="utf-8")) for path in PAGES]


def commands() -> list[str]:
    """Commands of the pages' shell blocks and of the heads of studies and sweeps, without comments, each once."""
    lines = [line for one in pages() for block in one.blocks("sh") for line in block.splitlines()]
    shell_lines = [re.sub(r"\s#.*$|^#.*$", "", line).strip() for line in lines]
    for path in (ROOT / "configs").rglob("*.yaml"):
        shell_lines += re.findall(
            r"^# (?:Command:)? +(make .*?)(?: {3}.*| > .*)?$", path.read_text("utf-8"), re.MULTILINE
        )
    return sorted(filter(None, set(shell_lines)))
