"""The site: `make docs` builds it into `build/docs`, warnings are errors, nothing is fetched."""

import datetime
import importlib.metadata
import re
import sys
from pathlib import Path
from typing import Any

project = "carbs"
author = "the carbs authors"
copyright = f"{datetime.date.today().year}, {author}"
try:
    release = importlib.metadata.version("carbs-search")
except importlib.metadata.PackageNotFoundError:
    release = ""

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
# `search.html` is the page on which the site itself is searched: `the_search.md` shows `search.md`.
exclude_patterns = ["search.md"]

# Pages. Links to headings count from the text, as on a code host.
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Notebooks are stored with what they printed: a build runs nothing.
nb_execution_mode = "off"
nb_merge_streams = True

# Reference.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # "A, alpha: ..." tells of two
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "FloatArray": "FloatArray"}
python_maximum_signature_line_length = 80

# Appearance. Furo uses the reader's own fonts, and asks nothing of the network.
html_theme = "furo"
html_title = "carbs"
html_static_path = ["static"]
html_css_files = ["carbs.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}


def setup(app: Any) -> None:
    app.connect("builder-inited", draw_figures)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("autodoc-process-docstring", plain_property, priority=400)  # before napoleon


def draw_figures(app: Any) -> None:
    """Into ``docs/figures``, which is in no version: the pages show what the code draws."""
    sys.path.insert(0, str(app.confdir))
    import figures

    figures.write(Path(app.confdir) / "figures")


def plain_property(app: Any, what: str, name: str, it: Any, options: Any, lines: list[str]) -> None:
    """What stands before a colon is no type: "In words: rows, range"."""
    if what in ("property", "attribute") and lines:
        lines[0] = lines[0].replace(": ", " – ", 1)


def plain_signature(
    app: Any,
    what: str,
    name: str,
    it: Any,
    options: Any,
    arguments: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """Names of types as they stand in the code: ``ArrayLike | None``."""
    parts = (arguments, returned)
    return tuple(part and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", part) for part in parts)  # type: ignore[return-value]
