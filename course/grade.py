"""Grade a student's tree: each exercise in a process of its own, under limits, with fresh seeds.

    python course/grade.py TREE                  # a line for each exercise
    python course/grade.py TREE --json           # one JSON object on stdout
    python course/grade.py TREE --seed 7         # the same questions again

The student's code runs in that process only. asking.py writes down what its functions return and
do, and hidden.py compares that here with answers that it works out anew. So printing, exiting early
or changing a test gains nothing. This is no sandbox: grade strangers' code in a container.
"""
import json
import os
import random
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from course import hidden
from course.exercises import EXERCISES, ROOT
from plumbing.cli import BadInput, Parser, end, number, path, printable, run

MEMORY, FILES = 6 << 30, 64 << 20  # bytes: of data, and of each file that is written
TOUCHED_THE_REFERENCE = 13  # exit code of asking.py


def cases_of(exercise, seed):
    """The questions, written to JSON and read again."""
    cases = getattr(hidden, f"cases_{exercise.number}")(random.Random(f"{seed} {exercise.number}"))
    return json.loads(json.dumps(cases))


def verdict(exercise, cases, answers):
    """-> what is wrong, or "" if nothing is. answers come from the student's process: any JSON."""
    check = getattr(hidden, f"check_{exercise.number}")
    if not isinstance(answers, list) or not answers:
        return "no answer"
    for case, answer in zip(cases, answers):
        if not isinstance(answer, dict) or "is" not in answer:
            name = answer.get("error") if isinstance(answer, dict) else None
            missing = "not written yet"
            return missing if name == "NotImplementedError" else f"raised {printable(name, 40)}"
        try:
            check(case, answer["is"])
        except hidden.Wrong as e:
            return str(e)
        except Exception:  # the answer does not have the form of a right one
            return "returns something of another form"
    return "" if len(answers) == len(cases) else "not all questions were answered"


def limit_resources(seconds):
    """In the child, before anything of the student runs."""
    for what, most in ((resource.RLIMIT_CPU, seconds + 5), (resource.RLIMIT_DATA, MEMORY),
                       (resource.RLIMIT_FSIZE, FILES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def asked(tree, exercise, cases, seconds):
    """Run asking.py on the student's tree -> answers (any JSON), or a str: why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        shutil.copyfile(ROOT / "course" / "asking.py", room / "asking.py")
        (room / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
        argv = [sys.executable, "-I", "-B", "asking.py", str(tree), str(exercise.number),
                "cases.json", "answers.json", str(ROOT), str(TOUCHED_THE_REFERENCE)]
        env = {"OMP_NUM_THREADS": "1", "HOME": folder, "TMPDIR": folder, "TQDM_DISABLE": "1",
               "PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8", "CUDA_VISIBLE_DEVICES": ""}
        child = subprocess.Popen(argv, cwd=room, env=env, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                 start_new_session=True,
                                 preexec_fn=lambda: limit_resources(seconds))
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"not done after {seconds} seconds"
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)  # and whatever it started
            except ProcessLookupError:
                pass
            child.wait()
        if code == TOUCHED_THE_REFERENCE:
            return "opened a file of the reference"
        if code < 0:
            return f"ended by signal {-code}"
        try:
            return json.loads((room / "answers.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return "ended without an answer"


def tests_changed(tree, exercise):
    """Did the student change the test of this exercise that was handed out?"""
    try:
        theirs = (tree / exercise.red_tests).read_bytes().split()
    except OSError:
        return True
    return theirs != (ROOT / exercise.red_tests).read_bytes().split()


def why_not(tree, exercise, seed, seconds):
    """-> why there are no points for this exercise, or "" if there are."""
    if tests_changed(tree, exercise):
        return f"{exercise.red_tests} was changed"
    cases = cases_of(exercise, seed)
    answers = asked(tree, exercise, cases, seconds)
    return answers if isinstance(answers, str) else verdict(exercise, cases, answers)


def grade(tree, exercises, seed, seconds):
    """-> the report that --json prints."""
    rows = []
    for e in exercises:
        why = why_not(tree, e, seed, seconds)
        rows.append({"number": e.number, "title": e.title, "points": 0 if why else e.points,
                     "of": e.points, "passed": not why, "why": why})
    return {"points": sum(row["points"] for row in rows), "total": sum(e.points for e in exercises),
            "exercises": rows, "seed": seed}


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("tree", metavar="TREE", type=path, help="the folder of a student")
    p.add_argument("--seed", type=number(0, 2**62), help="of the questions (default: a fresh one)")
    p.add_argument("--seconds", type=number(1, 3600), default=60, help="per exercise (default: 60)")
    p.add_argument("--only", type=number(1, len(EXERCISES)), nargs="+", metavar="N",
                   help="these exercises alone (default: all)")
    p.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    args = p.parse_args(argv)
    tree = Path(args.tree).resolve()
    if not tree.is_dir():
        raise BadInput(f"{printable(args.tree, 200)} is no folder")
    if not all((tree / name).is_file() for name in ("model.py", "objectives.py", "sample.py")):
        raise BadInput(f"{printable(args.tree, 200)} is no tree of this project: it lacks "
                       "model.py, objectives.py or sample.py")
    seed = secrets.randbelow(2**62) if args.seed is None else args.seed
    exercises = [e for e in EXERCISES if args.only is None or e.number in args.only]
    report = grade(tree, exercises, seed, args.seconds)
    if args.json:
        print(json.dumps(report))
        return
    for row in report["exercises"]:
        print(f"{row['number']}  {row['points']:3} of {row['of']:2}  {row['title']}"
              + (f": {row['why']}" if row["why"] else ""))
    print(f"{report['points']} of {report['total']} points")


if __name__ == "__main__":
    end(run(main))
