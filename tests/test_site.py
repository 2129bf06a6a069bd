"""The site builds without a warning, asks nothing of the network, and can be read on a phone."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from selenium.webdriver import Chrome

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_source_has_a_page_with_its_heading(site: Path) -> None:
    """Sphinx makes pages of its own, which would hide one of the same name."""
    docs = ROOT / "docs"
    sources = [
        path for path in docs.rglob("*.md") if path.name not in ("search.md", "changelog.md")
    ]
    assert len(sources) > 15
    headings = {path: path.read_text().split("\n", 1)[0] for path in sources}
    headings[docs / "the_search.md"] = (docs / "search.md").read_text().split("\n", 1)[0]
    for path, heading in headings.items():
        page = (site / path.relative_to(docs)).with_suffix(".html").read_text()
        first = re.search(r"<h1>(.*?)<a", page, re.DOTALL)
        assert first and first[1] == html.escape(heading.removeprefix("# "), quote=False), path


class Resources(HTMLParser):
    """What a page loads by itself: not what it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag in ("script", "img", "iframe", "source", "video", "embed"):
            self.found += [values[name] for name in ("src", "srcset") if name in values]
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev", "search"):
            self.found.append(values["href"])


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        parser = Resources()
        parser.feed(page.read_text())
        assert parser.found
        assert [url for url in parser.found if re.match(r"(\w+:)?//", url)] == [], page.name
    for style in (site / "_static").rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", style.read_text()), style.name


class Links(HTMLParser):
    """Where a page leads to, and the places in it to which others may lead."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.targets.append(values["href"])


def test_every_link_leads_somewhere(site: Path) -> None:
    """Pages and places in them; what lies elsewhere is only to be an address in full."""
    pages = {}
    for path in site.rglob("*.html"):
        pages[path] = Links()
        pages[path].feed(path.read_text())
    broken, n_checked = [], 0
    for path, links in pages.items():
        for target in links.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                assert url.scheme in ("https", "mailto") and (url.netloc or url.path), target
                continue
            n_checked += 1
            aim = (path.parent / unquote(url.path)).resolve() if url.path else path
            place = unquote(url.fragment)
            if not aim.exists() or (place and aim in pages and place not in pages[aim].places):
                broken.append((path.name, target))
    assert n_checked > 1000
    assert broken == []


def test_every_public_name_has_its_place_in_the_reference(site: Path) -> None:
    import carbs
    from carbs import analysis

    text = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    places = set(re.findall(r'id="([\w.]+)"', text))
    assert {f"carbs.{name}" for name in carbs.__all__} <= places
    left_out = {"datasets", "GPUS"}
    assert {f"carbs.analysis.{name}" for name in set(analysis.__all__) - left_out} <= places


def test_every_figure_is_in_the_gallery(site: Path) -> None:
    from carbs.analysis.report import plots

    page = (site / "gallery.html").read_text()
    drawn = {name for name in plots.__all__ if name.startswith("plot_")}
    assert drawn <= set(re.findall(r"\w+", re.sub(r"<[^>]+>", "", page)))
    images = re.findall(r'src="(_images/[^"]+)"', page)
    assert len(images) >= len(drawn) and all((site / image).stat().st_size for image in images)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_is_no_wider_than_the_screen(site: Path, browser: Chrome, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for page in site.rglob("*.html"):
        browser.get(page.as_uri())
        assert browser.get_log("browser") == []
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, page
