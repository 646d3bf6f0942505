"""Files, functions and nesting stay small enough to be read at once."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "bqdispatch_provider").rglob("*.py"), *(ROOT / "demo").rglob("*.py")])
STATIC = sorted((ROOT / "bqdispatch_provider" / "page" / "static").iterdir())
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
"""Without the docstring."""

MAX_DEPTH = 4
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.AsyncFor, ast.AsyncWith, ast.Match)


def functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(function):
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function):
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def depth(node, level=0):
    deepest = level
    for child in ast.iter_child_nodes(node):
        # An `elif` is an `if` alone in the `else` before it, and no deeper.
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth(child, level + (isinstance(child, BLOCKS) and not is_elif)))
    return deepest


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_read_at_once(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    assert {each.name: length(each) for each in functions(path) if length(each) > MAX_FUNCTION_LINES} == {}
    assert {each.name: depth(each) for each in functions(path) if depth(each) > MAX_DEPTH} == {}


@pytest.mark.parametrize("path", STATIC, ids=lambda path: path.name)
def test_a_file_of_the_page_is_read_at_once(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


def test_length_and_depth_are_seen():
    (function,) = ast.parse(
        "def f():\n    '''Doc.'''\n    if a:\n        pass\n    elif b:\n        for c in d:\n            pass"
    ).body
    assert (length(function), depth(function)) == (6, 2)
