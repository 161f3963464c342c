"""The house rules: a reader has one sitting, and a window that is 100 columns wide."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = sorted(ROOT.glob("*.py"))
FILES = [*TOP, *sorted(f for folder in ("data", "decoders", "plumbing", "tests")
                       for f in (ROOT / folder).rglob("*.py"))]


def names(files):
    return [str(f.relative_to(ROOT)) for f in files]


@pytest.mark.parametrize("file", FILES, ids=names(FILES))
def test_no_line_is_longer_than_100_columns(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    assert not [(number, line) for number, line in enumerate(lines, 1) if len(line) > 100]


@pytest.mark.parametrize("file", TOP, ids=names(TOP))
def test_no_function_is_longer_than_60_lines(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions}
    assert not {name: lines for name, lines in long.items() if lines > 60}


@pytest.mark.parametrize("name, most", [("sample.py", 230), ("train.py", 280)])
def test_the_core_stays_small(name, most):
    """Lines in top-level functions and classes, blank ones not counted."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    count = 0
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            count += sum(bool(line.strip()) for line in lines[first - 1:node.end_lineno])
    assert 100 < count <= most
