"""The documentation as a site: `.ci/docs` builds it with warnings as errors.

Every page is Markdown that GitHub shows as well. Pages that are kept outside docs/ are listed in `ELSEWHERE`, and links
to files of the repository lead to GitHub.
"""

import os
import re
from pathlib import Path

import kd_jax

DOCS = Path(__file__).parent
ROOT = DOCS.parent
SOURCE = "https://github.com/kd-jax/kd_jax/blob/main/"
ELSEWHERE = {  # {page: file that it shows instead of its own text, which is a link for readers on GitHub}
    "benchmarks": "benchmarks/README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "features": "data_prep/README.md",
}

project, author, version = "kd_jax", "the kd_jax authors", kd_jax.__version__
copyright = "the kd_jax authors; Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"kd_jax {version}"
nitpicky = True
nitpick_ignore = [("py:class", "jax.numpy.float32")]  # the default of an attribute of Detector

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings state shapes, which say more than jax.Array
napoleon_use_param = False  # "student, teacher: …" describes two arguments
napoleon_custom_sections = [("Attributes", "params_style"), "Returns"]


def to_markdown_of_the_site(app, page: str, source: list[str]) -> None:
    """Replaces a page by its file of `ELSEWHERE`, and links to files outside docs/ by links that the site has."""
    if not (DOCS / f"{page}.md").exists():
        return
    file = ROOT / ELSEWHERE.get(page, f"docs/{page}.md")
    pages = {ROOT / path: DOCS / f"{name}.md" for name, path in ELSEWHERE.items()}

    def link(match: re.Match) -> str:
        target, _, heading = match[1].partition("#")
        path = Path(os.path.normpath(file.parent / target))
        if not target or ":" in target or not path.exists():
            return match[0]
        path = pages.get(path, path)
        address = path.relative_to(DOCS) if path.is_relative_to(DOCS) else SOURCE + str(path.relative_to(ROOT))
        return f"]({address}{heading and '#' + heading})"

    app.env.note_dependency(str(file))
    source[0] = re.sub(r"\]\(([^)\s]+)\)", link, file.read_text())


def to_restructured_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Turns the Markdown of a docstring into what docutils reads: literals, code, tables, and sections on one line."""
    text = "\n".join(lines)
    text = re.sub(r"(?<!`)(`+)([^`]+)\1(?!`)", lambda match: f"``{' '.join(match[2].split())}``", text)
    text = re.sub(r"(?m)^(?!    )(.*\S.*\n)\n(?=    \S)", r"\1\n::\n\n", text)
    text = re.sub(r"(?m)^\|.*$", lambda match: "| " + match[0].strip("| ").replace("|", r"\|"), text)
    text = re.sub(r"(?m)^(Returns|Raises|References): (.+(?:\n +\S.*)*)", r"\n:\1: \2\n", text)
    text = re.sub(r"(?m)^  (``\w+``: )", r"  - \1", text)  # the values of a dict that is returned
    lines[:] = text.split("\n")


def setup(app) -> None:
    app.connect("source-read", to_markdown_of_the_site)
    app.connect("autodoc-process-docstring", to_restructured_text, priority=400)  # before napoleon
