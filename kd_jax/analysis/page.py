"""Self-contained HTML pages: a template of `pages/` with its styles, scripts and data inside.

html = make_page("report.html", title="demo", data=content, scripts=["timeline.js", "report.js"])
"""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources

_FOLDER = resources.files("kd_jax.analysis") / "pages"


def make_page(template: str, *, title: str, data: Mapping, scripts: Sequence[str]) -> str:
    """Returns a page that needs no other file and no network.

    Args:
      template: a file of `pages/`, with places for {{title}}, {{style}}, {{data}} and {{script}}.
      data: plain JSON, which the scripts read.
      scripts: files of `pages/`, in this order.
    """
    parts = {
        "title": escape(title),
        "style": _read("page.css"),
        "data": embed(data),
        "script": "\n".join(_read(script) for script in scripts),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _read(template))


def embed(data: Mapping) -> str:
    """Returns compact JSON that can be the content of a <script> element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")  # so that neither </script> nor <!-- occurs


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
