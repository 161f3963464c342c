"""The house rules: a reader has one sitting, and a window that is 100 columns wide."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = sorted(ROOT.glob("*.py"))
DECODERS = sorted((ROOT / "decoders").glob("*.py"))
FILES = [*TOP, *DECODERS, *sorted(f for folder in ("data", "plumbing", "studies", "tests")
                       for f in (ROOT / folder).rglob("*.py"))]


def names(files):
    return [str(f.relative_to(ROOT)) for f in files]


@pytest.mark.parametrize("file", FILES, ids=names(FILES))
def test_no_line_is_longer_than_100_columns(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    assert not [(number, line) for number, line in enumerate(lines, 1) if len(line) > 100]


@pytest.mark.parametrize("file", [*TOP, *DECODERS], ids=names([*TOP, *DECODERS]))
def test_no_function_is_longer_than_60_lines(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions}
    assert not {name: lines for name, lines in long.items() if lines > 60}


HEART = ("model", "diffusion", "mtp", "objectives", "noise", "metrics", "errors", "sample")


def imports_of(file, whole=True):
    """The modules that a file imports; whole=False: without those inside its function main()."""
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
    """Neither the command line nor checkpoints: only sample.py's main() imports those.

    The exception: evaluate() imports decoders/ where a decoder of another paper is asked for.
    """
    standard = {"collections", "collections.abc", "contextlib", "dataclasses", "json", "math",
                "sys", "time"}
    found = {m for m in imports_of(ROOT / f"{name}.py", whole=False) if "." not in m}
    assert found <= {"torch", "tqdm", *HEART, *standard, *["decoders"][:name == "sample"]}


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# From the ground up: what stands here imports only what stands further left, or in its own folder.
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
    """Files can be taken away one by one, always one that imports none of the rest."""
    arrows = project_arrows()
    while free := [m for m, targets in arrows.items() if not targets & arrows.keys()]:
        for m in free:
            del arrows[m]
    assert not arrows


def test_the_heart_is_one_sitting():
    """Four files and the sampler have at most 650 lines, train.py at most 300."""
    def lines(name):
        return (ROOT / name).read_text(encoding="utf-8").splitlines()
    decoding = lines("sample.py").index("# Evaluation")
    heart = sum(len(lines(f)) for f in ("model.py", "diffusion.py", "mtp.py", "objectives.py"))
    assert heart + decoding <= 650 and len(lines("train.py")) <= 300
