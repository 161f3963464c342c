"""The house rules: line and function lengths, and who imports whom."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [*ROOT.glob("*.py"), *(f for folder in ("course", "data", "decoders", "plumbing", "studies",
                                                "tests", "viewer")
                               for f in (ROOT / folder).rglob("*.py"))]


def test_lines_have_at_most_100_columns_and_functions_60_lines():
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        long = [n for n, line in enumerate(text.splitlines(), 1) if len(line) > 100]
        assert not long, f"{file}: lines {long}"
        lengths = {f.name: f.end_lineno - f.lineno + 1 for f in ast.walk(ast.parse(text))
                   if isinstance(f, ast.FunctionDef)}
        assert max(lengths.values(), default=0) <= 60, (file, lengths)


HEART = ("model", "diffusion", "mtp", "objectives", "noise", "metrics", "errors", "sample")


def imports_of(file, whole=True):
    """The modules that a file imports; whole=False: without those of its main() and its ifs."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if not whole:
        tree.body = [node for node in tree.body if not isinstance(node, ast.If)
                     and getattr(node, "name", "") != "main"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name", HEART)
def test_the_heart_imports_torch_and_itself(name):
    """sample.py's main() imports the command line and checkpoints, decode_all() decoders/."""
    standard = {"collections", "collections.abc", "contextlib", "dataclasses", "json", "math",
                "sys", "time"}
    found = {m for m in imports_of(ROOT / f"{name}.py", whole=False) if "." not in m}
    assert found <= {"torch", "tqdm", *HEART, *standard, *["decoders"][:name == "sample"]}


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Each imports only from those to its left, or from its own folder.
FLOORS = ["errors", "noise", "model", "diffusion", "mtp", "objectives", "metrics", "data", "config",
          "decoders", "plumbing", "sample", "train", "studies", "bench", "viewer", "course",
          "reproduce"]


def project_arrows():
    """{module: the modules of this project that it imports}, without tests."""
    files = [f for place in FLOORS for f in (ROOT.glob(f"{place}.py") if not
             (ROOT / place).is_dir() else (ROOT / place).glob("*.py"))]
    modules = {module_of(f) for f in files}
    return {module_of(f): {m for m in imports_of(f) if m in modules and m != module_of(f)}
            for f in files}


def test_imports_only_go_down():
    floor = {place: i for i, place in enumerate(FLOORS)}
    up = [(a, b) for a, targets in project_arrows().items() for b in targets
          if floor[a.split(".")[0]] < floor[b.split(".")[0]]]
    assert not up


def test_no_circle_of_files():
    """Files can be removed one by one, always one that imports none of the rest."""
    arrows = project_arrows()
    while free := [m for m, targets in arrows.items() if not targets & arrows.keys()]:
        for m in free:
            del arrows[m]
    assert not arrows


def test_the_heart_is_one_sitting():
    """Four files and the sampler have at most 650 lines, train.py has at most 300."""
    def lines(name):
        return (ROOT / name).read_text(encoding="utf-8").splitlines()
    decoding = lines("sample.py").index("# Evaluation")
    heart = sum(len(lines(f)) for f in ("model.py", "diffusion.py", "mtp.py", "objectives.py"))
    assert heart + decoding <= 650 and len(lines("train.py")) <= 300
