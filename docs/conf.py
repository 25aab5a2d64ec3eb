"""The static site: `make site`. Nothing is executed, and nothing is fetched when a page is read."""

import json

from igkd import __version__

project = "igkd"
author = "the igkd authors"
release = __version__
root_doc = "README"
include_patterns = [
    "README.md",
    "docs/*.md",
    "notebooks/*.ipynb",
    "figures/ledger.md",
    "weights/README.md",
    "CONTRIBUTING.md",
]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]
html_theme = "furo"
html_title = "igkd: a paper that runs"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_extra_path = ["redirect"]  # the front page is README.html
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_disable_syntax = ["myst_line_comment"]  # a line that begins with "% of" is text
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
# Links of README.md to folders and to files that are no pages: they mean the repository, not the site.
suppress_warnings = ["myst.xref_missing", "mystnb.unknown_mime_type", "misc.highlighting_failure"]

CONTENTS = """
```{toctree}
:hidden:
:caption: Notebooks
:glob:

notebooks/*
```

```{toctree}
:hidden:
:caption: The study

ledger <figures/ledger>
weights/README
docs/own-images
docs/findings
docs/log
docs/performance
```

```{toctree}
:hidden:
:caption: The library

docs/api
docs/cluster
CONTRIBUTING
```
"""


def setup(app):
    """Append the table of contents to README, which shows none by itself, and pass on the texts of pictures."""

    def prepare(app, page, source):
        source[0] += CONTENTS * (page == root_doc)
        if page.startswith("notebooks/"):  # MyST-NB reads them from the cell, Jupyter writes them to the output
            notebook = json.loads(source[0])
            for cell in notebook["cells"]:
                for output in cell.get("outputs", ()):
                    if text := output.get("metadata", {}).get("image/png", {}).get("alt"):
                        cell["metadata"]["mystnb"] = {"image": {"alt": text}}
            source[0] = json.dumps(notebook)

    app.connect("source-read", prepare)
