"""Gather the pages of the documentation site: ``python docs/site.py <folder>``, which ``make docs`` calls.

In the repository, pages lie where people look for them, and link to each other and to files. In the site they lie in
one folder: links between pages go on, a file becomes a download, and a folder becomes plain text. A link to what is
missing is an error. A picture for light and one for dark become two with the classes by which the theme shows one.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
    "deploy/composer/README.md": "composer.md",
    "deploy/roles/README.md": "roles.md",
    "benchmarks/README.md": "benchmarks.md",
    "tests/model/README.md": "model.md",
}
"""Pages outside of ``docs/``, and what they are called in the site."""

PICTURE = re.compile(
    r"<picture>\s*<source media=\"\(prefers-color-scheme: dark\)\" srcset=\"([^\"]+)\">\s*"
    r"<img alt=\"([^\"]+)\" src=\"([^\"]+)\">\s*</picture>"
)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def gather(folder: Path) -> None:
    """Copy all pages and pictures into a folder, with links that suit it.

    :param folder: is emptied first.
    :raises FileNotFoundError: if a page links to a file that is missing.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pages = {ROOT / path: name for path, name in ELSEWHERE.items()}
    pages |= {path: path.name for path in (ROOT / "docs").glob("*.md")}
    for picture in (path for path in (ROOT / "docs").rglob("*") if path.suffix in (".svg", ".png")):
        target = folder / picture.relative_to(ROOT / "docs")
        target.parent.mkdir(exist_ok=True)
        shutil.copy(picture, target)
    shutil.copy(ROOT / "docs" / "conf.py", folder)
    for page, name in pages.items():
        text = PICTURE.sub(lambda match, page=page: _themed(match, page), page.read_text())
        text = LINK.sub(lambda match, page=page: _link(match, page, pages, folder), text)
        (folder / name).write_text(text)


def _themed(match: re.Match[str], page: Path) -> str:
    """Return both pictures, each with the class by which furo shows it in one theme alone."""
    dark, text, light = match[1], match[2], match[3]
    shown = {theme: (page.parent / source).resolve() for theme, source in (("light", light), ("dark", dark))}
    return "\n".join(
        f"```{{image}} {path.relative_to(ROOT / 'docs')}\n:class: only-{theme}\n:alt: {text}\n```\n"
        for theme, path in shown.items()
    )


def _link(match: re.Match[str], page: Path, pages: dict[Path, str], folder: Path) -> str:
    mark, text, target, anchor = match[1], match[2], match[3], match[4] or ""
    if not target or re.match(r"\w+:", target):
        return match[0]
    path = (page.parent / target).resolve()
    if not path.exists():
        raise FileNotFoundError(f"{page.relative_to(ROOT)} links to {target}, which is missing")
    if path in pages:
        return f"[{text}]({pages[path]}{anchor})"
    if path.suffix in (".svg", ".png"):
        return f"{mark}[{text}]({path.relative_to(ROOT / 'docs')})"
    if path.is_dir():
        return text
    copy = folder / "files" / path.relative_to(ROOT)
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, copy)
    return f"[{text}](path:{os.path.relpath(copy, folder)})"


if __name__ == "__main__":
    gather(Path(sys.argv[1]))
