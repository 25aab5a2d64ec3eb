"""The static site is whole: built without a warning, no broken link, a text for every picture, nothing from elsewhere."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import bs4
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Path and content of each page."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", str(site / "trees"), "."]
    built = subprocess.run([*command, str(site / "html")], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return {path: bs4.BeautifulSoup(path.read_text(), "html.parser") for path in (site / "html").rglob("*.html")}


def test_links_lead_to_a_page_of_the_site_and_to_a_place_in_it(pages):
    broken = []
    for path, page in pages.items():
        for link in page.select("a[href], link[href], script[src], img[src]"):
            url = urlsplit(link.get("href") or link.get("src"))
            if url.scheme or url.netloc:
                continue
            target = Path(os.path.normpath(path.parent / unquote(url.path))) if url.path else path
            if not target.exists() or (url.fragment and target in pages and not pages[target].find(id=url.fragment)):
                broken.append((path.name, url.geturl()))
    assert not broken


def test_a_page_fetches_nothing_from_elsewhere_and_every_picture_has_a_text(pages):
    for path, page in pages.items():
        for element in page.select("script[src], img[src], link[rel=stylesheet]"):
            assert not urlsplit(element.get("src") or element.get("href")).netloc, (path.name, element)
        assert all(image.get("alt") for image in page.select("img")), path.name
