"""Write the starter tree of the course: the project's files without the bodies of the exercises.

    python course/make_starter.py OUT            # cut everything that the students are to write
    python course/make_starter.py OUT --only 4   # cut one exercise; the others are solved

The starter is made from the project itself, so the two cannot differ.
"""
import ast
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from course.exercises import EXERCISES, ROOT
from plumbing.cli import BadInput, Parser, end, number, path, printable, run

# What is handed out. Not the grader, nor tests that contain a solution in other words, nor results,
# logs and the project's README, which say what the students are to measure.
HANDED_OUT = ("*.py", "data/*.py", "decoders/*.py", "plumbing/*.py", "studies/*.py", "viewer/*.*",
              "Makefile", "requirements.txt", "pyproject.toml", "LICENSE", ".gitignore",
              "tests/conftest.py", "tests/concepts/test_puzzles.py",
              "tests/concepts/test_tasks.py",
              "course/ex*.py", "course/tests/*.py",
              "results/demo-dial/scdm-seed0.pt")
NOT_HANDED_OUT = ("course/exercises.py", "studies/exact.py",
                  "studies/adjust.py")  # it imports exact.py


def handed_out():
    """-> the files of the starter, relative to the project."""
    found = {f.relative_to(ROOT).as_posix() for pattern in HANDED_OUT for f in ROOT.glob(pattern)}
    return sorted(found.difference(NOT_HANDED_OUT))


def cut(source, names, exercise):
    """Python source -> the same, but these functions raise NotImplementedError.

    Their docstrings stay: they are the specification. Raises KeyError for a missing function.
    """
    functions = {node.name: node for node in ast.parse(source).body
                 if isinstance(node, ast.FunctionDef)}
    lines = source.splitlines(keepends=True)
    for node in sorted((functions[name] for name in names), key=lambda f: -f.lineno):
        has_docstring = ast.get_docstring(node) is not None
        first = node.body[0].end_lineno if has_docstring else node.body[0].lineno - 1
        flag = f'    raise NotImplementedError("exercise {exercise}: {node.name}")\n'
        lines[first:node.end_lineno] = [flag]
    return "".join(lines)


def write_starter(out, cut_numbers):
    """The starter tree in `out`, a folder that is new or empty."""
    for name in handed_out():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, out / name)
    shutil.copyfile(ROOT / "course" / "README.md", out / "README.md")
    tests = out / "pyproject.toml"
    tests.write_text(tests.read_text(encoding="utf-8").replace(
        'testpaths = ["tests"]', 'testpaths = ["tests", "course/tests"]'), encoding="utf-8")
    for exercise in EXERCISES:
        if exercise.number in cut_numbers:
            for name, *functions in exercise.cuts:
                source = (out / name).read_text(encoding="utf-8")
                (out / name).write_text(cut(source, functions, exercise.number), encoding="utf-8")


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("out", metavar="OUT", type=path, help="a folder that is new or empty")
    p.add_argument("--only", type=number(1, len(EXERCISES)), help="cut this exercise alone")
    args = p.parse_args(argv)
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{printable(out, 200)} is there already and not an empty folder")
    write_starter(out, [args.only] if args.only else [e.number for e in EXERCISES])
    print(f"{printable(out, 200)}: {len(handed_out())} files; go on with README.md")


if __name__ == "__main__":
    end(run(main))
