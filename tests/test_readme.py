"""README.md, docs/ and the static site: claims are those of the records, the example runs, links and commands hold."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import bs4
import pytest

from igkd.claims import renewed
from igkd.study import Study
from small import ROOT

TEXT = (ROOT / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = [line for line in re.sub(r" *#.*", "", SHELL).splitlines() if line]


def test_the_claims_are_those_of_the_records():
    assert renewed(TEXT, Study("paper", device="cpu", log=lambda line: None)) == TEXT, "publish the paper profile"


def test_pictures_and_links_are_there():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", path.read_text()):
            assert (path.parent / target).exists(), (path, target)


@pytest.mark.parametrize("page", ["README.md", "docs/own-images.md"])
def test_the_library_example_runs(page):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    names = {}
    exec(example, names)
    assert (names["maps"] >= 0).all() and all(each.grad is None for each in names["teacher"].parameters())


# Commands that train or need the images are not run: their options are read, and --help ends the call.
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists(command):
    words = shlex.split(command)
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    else:
        program = words[1 : 4 if "-m" in words else 2]
        known = subprocess.check_output([sys.executable, *program, "--help"], cwd=ROOT, text=True)
        given = {word for word in words[1:] if word[:2] == "--"}
        assert words[0] == "python" and given <= set(re.findall(r"--[\w-]+", known))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Path and content of each page."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", str(site / "trees"), "."]
    built = subprocess.run([*command, str(site / "html")], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return {path: bs4.BeautifulSoup(path.read_text(), "html.parser") for path in (site / "html").rglob("*.html")}


def test_links_lead_to_a_page_of_the_site_and_to_a_place_in_it(pages):
    for path, page in pages.items():
        for link in page.select("a[href], link[href], script[src], img[src]"):
            url = urlsplit(link.get("href") or link.get("src"))
            target = Path(os.path.normpath(path.parent / unquote(url.path))) if url.path else path
            found = not url.fragment or target not in pages or pages[target].find(id=url.fragment)
            assert url.scheme or url.netloc or (target.exists() and found), (path.name, url.geturl())


def test_a_page_fetches_nothing_from_elsewhere_and_every_picture_has_a_text(pages):
    for path, page in pages.items():
        for element in page.select("script[src], img[src], link[rel=stylesheet]"):
            assert not urlsplit(element.get("src") or element.get("href")).netloc, (path.name, element)
        assert not [image for image in page.select("img") if (image.get("alt") or ".png").endswith(".png")], path.name


def test_the_front_page_shows_every_number_of_the_readme(pages):
    (page,) = [page.text for path, page in pages.items() if path.parts[-2:] == ("html", "README.html")]
    assert set(re.findall(r"\d+\.\d+", TEXT)) <= set(re.findall(r"\d+\.\d+", page))
