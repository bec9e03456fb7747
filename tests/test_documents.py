"""Links between documents lead to files and headings that exist, and the index of docs/ names every page."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FOLDERS = (ROOT, DOCS, DOCS / "decisions", ROOT / "examples", ROOT / "grafana", ROOT / "tests")
PAGES = sorted(page for folder in FOLDERS for page in folder.glob("*.md"))

_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """The page's text without fenced code."""
    return _FENCE.sub("", page.read_text())


@cache
def anchors(page: Path) -> frozenset[str]:
    """What links may name after '#', as GitHub makes it of headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    shown = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).strip().lower() for title in titles]
    return frozenset(re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in shown)


def links(page: Path) -> list[str]:
    return [link for link in _LINK.findall(_CODE.sub("", prose(page))) if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_of_it(page: Path) -> None:
    broken = []
    for link in links(page):
        file, _, heading = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists():
            broken.append(f"{link}: no such file")
        elif heading and target.suffix == ".md" and heading not in anchors(target):
            broken.append(f"{link}: no such heading")
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_piece_of_python_can_be_parsed(page: Path) -> None:
    for code in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        ast.parse(code)


@pytest.mark.parametrize("index", [DOCS / "README.md", DOCS / "decisions" / "README.md"], ids=["docs", "decisions"])
def test_an_index_names_every_page_of_its_folder(index: Path) -> None:
    named = {link.partition("#")[0] for link in links(index)}
    assert [page.name for page in sorted(index.parent.glob("*.md")) if page != index and page.name not in named] == []


def test_the_architecture_names_tests_and_files_that_exist() -> None:
    page = (DOCS / "architecture.md").read_text()
    named = set(re.findall(r"`((?:tests/)?[\w/]+\.(?:py|html|in|proto))`", page))
    places = (ROOT, ROOT / "daemon" / "inferd")
    assert {name for name in named if "/" in name and not any((place / name).exists() for place in places)} == set()
