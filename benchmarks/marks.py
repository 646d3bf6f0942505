"""Write tables into the documentation: each stands between two marks."""

import re
from pathlib import Path


def write(document: Path, name: str, content: str) -> None:
    """Replace what stands between the marks of a name.

    :param document: the page.
    :param name: the name in the marks.
    :param content: the new text.
    :raises SystemExit: when the page has no such marks.
    """
    before, after = f"<!-- {name} -->", f"<!-- /{name} -->"
    page = document.read_text()
    if not (before in page and after in page):
        raise SystemExit(f"{document} has no {before} … {after}")
    new = f"{before}\n{content}\n{after}"
    document.write_text(re.sub(f"{before}.*{after}", lambda _: new, page, flags=re.DOTALL))
