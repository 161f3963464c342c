"""The course: the starter, the grader and its planted mistakes.

Not all of it fits into a minute: a third of the mistakes are planted, and single exercises are not
cut one by one. COURSE=all does everything, in about three minutes.
"""
import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from course import grade, make_starter
from course.exercises import EXERCISES, ROOT, announced
from course.grade import cases_of, verdict, why_not
from course.planted import PLANTED, answers_of, changed
from course.redgreen import outcomes
from plumbing.cli import run

ALL = os.environ.get("COURSE") == "all"
only_all = pytest.mark.skipif(not ALL, reason="COURSE=all runs it")
FILES = sorted((ROOT / "course").rglob("*.py"))
README = (ROOT / "course" / "README.md").read_text(encoding="utf-8")


def program(*argv, cwd=None, seconds=300):
    """python course/..., from another folder -> exit code, stdout, stderr."""
    argv = [sys.executable, str(ROOT / "course" / argv[0]), *map(str, argv[1:])]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=seconds)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    out = tmp_path_factory.mktemp("course") / "starter"
    code, said, error = program("make_starter.py", out)
    assert code == 0 and f"{len(make_starter.handed_out())} files" in said, error
    return out


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The same files, with the solutions."""
    tree = tmp_path_factory.mktemp("course") / "project"
    make_starter.write_starter(tree, [])
    return tree


# -- the table, the house rules --


def test_the_table_names_what_is_there():
    assert [e.number for e in EXERCISES] == list(range(1, len(EXERCISES) + 1))
    assert sum(e.points for e in EXERCISES) == 100
    for e in EXERCISES:
        assert (ROOT / e.red_tests).is_file()
        for name, *functions in e.cuts:
            source = (ROOT / name).read_text(encoding="utf-8")
            make_starter.cut(source, functions, e.number)  # KeyError: a function was renamed
    assert announced([4]) == ["course/tests/test_ex4.py"] and len(announced([1])) == 2


@pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(ROOT)) for f in FILES])
def test_house_rules(file):
    text = file.read_text(encoding="utf-8")
    assert not [line for line in text.splitlines() if len(line) > 100]
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    assert not [f.name for f in functions if f.end_lineno - f.lineno >= 60]


# -- the starter --


def test_cutting_leaves_the_docstring_and_everything_else():
    head = '@wrap\ndef f(x):\n    """Says\n    what."""\n'
    f, g = "    # how\n    return x\n", "\n\ndef g():\n    return 1\n"
    flag = '    raise NotImplementedError("exercise 3: {}")\n'
    assert make_starter.cut(head + f + g, ["f"], 3) == head + flag.format("f") + g
    assert make_starter.cut(g, ["g"], 3) == "\n\ndef g():\n" + flag.format("g")


def test_the_starter_holds_no_solution(starter):
    """Of what is cut the docstring is left; what tells answers is not handed out."""
    for e in EXERCISES:
        for name, *functions in e.cuts:
            module = ast.parse((starter / name).read_text(encoding="utf-8"))
            found = {n.name: n for n in module.body if isinstance(n, ast.FunctionDef)}
            for function in functions:
                assert ast.get_docstring(found[function])
                assert len(found[function].body) == 2
                assert isinstance(found[function].body[1], ast.Raise)
    names = {f.relative_to(starter).as_posix() for f in starter.rglob("*") if f.is_file()}
    assert not [n for n in names if re.search(r"LOG|RESULTS|\.git/|json|png|hidden|planted|grade|"
                                              r"asking|exercises\.py|test_losses|test_sample", n)]
    assert {"README.md", "Makefile", "requirements.txt", "course/tests/stubs.py"} <= names


def test_what_the_starter_imports_is_handed_out(starter):
    for file in starter.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                name = f"{node.module.replace('.', '/')}.py"
                assert (starter / name).exists() or not (ROOT / name).exists(), (file, name)


def test_the_starter_runs_all_its_tests(starter):
    assert 'testpaths = ["tests", "course/tests"]' in (starter / "pyproject.toml").read_text()


def test_a_starter_overwrites_nothing(tmp_path, capsys):
    (tmp_path / "mine").write_text("")
    assert run(make_starter.main, [str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "not an empty folder" in error
    assert [f.name for f in tmp_path.iterdir()] == ["mine"]


def redgreen(*argv):
    code, said, error = program("redgreen.py", *argv)
    assert code == 0 and "NOT AS" not in said, said + error
    return said


def test_exactly_the_announced_tests_are_red():
    """Everything cut; nothing cut, which is the starter with the solutions pasted back."""
    said = redgreen("--quick")
    assert re.search(r"cut \[1, .*, 9\]: (\d+) of \1 tests red, as announced", said)
    assert re.search(r"cut \[\]: 0 of \d+ tests red, as announced", said)


@only_all
def test_each_exercise_alone_and_the_other_tests():
    assert redgreen("--whole").count("as announced") == len(EXERCISES) + 2


# -- the grader --


@pytest.mark.parametrize("e", EXERCISES, ids=[str(e.number) for e in EXERCISES])
def test_the_project_is_right_under_any_seed(e, project):
    for seed in range(10 if ALL else 1):
        cases = cases_of(e, seed)
        assert verdict(e, cases, answers_of(project, e, cases)) == "", seed


OTHERWISE = {
    "visible": """\
    q, k = rank[..., :, None], rank[..., None, :]
    out = (k < q) | ((k == q) & (k <= 0))
    i = torch.arange(rank.shape[-1])
    out[..., i, i] = True
    return out
""",
    "joint": """\
    return torch.zeros_like(level)
""",
    "independent": """\
    return (level > 0).float() * 7
""",
    "semi_causal": """\
    return torch.where(level > 0, level * 2.5, 0.0)
""",
    "draw_num_masked": """\
    import random as R
    R.seed(int(torch.randint(10**9, (1,), generator=generator)))
    B, m = len(maskable), []
    few = math.ceil(rates[2] * B)
    for b, most in enumerate(maskable.tolist()):
        if b < few:
            ratio = (b + R.random()) / few
        else:
            u = (b - few + R.random()) / (B - few)
            ratio = (1 - (1 - u) ** (1 / rates[1])) ** (1 / rates[0])
        m.append(1 + min(int(ratio * most), most - 1))
    return torch.tensor(m)
""",
    "draw_levels": """\
    import random as R
    R.seed(int(torch.randint(10**9, (1,), generator=generator)))
    m = draw_num_masked((~given).sum(1), generator, rates)
    level = torch.zeros(given.shape, dtype=torch.long)
    for b, row in enumerate(given.tolist()):
        cells = [i for i, known in enumerate(row) if not known]
        if not left_to_right:
            R.shuffle(cells)
        for t, i in enumerate(cells[len(cells) - int(m[b]):], 1):
            level[b, i] = t
    return level
""",
    "masked_loss": """\
    noisy = tokens.clone()
    noisy[:, task.P:][level > 0] = task.MASK
    rank = ranks(level, W)
    if rank is not None:
        rank = torch.cat([rank.new_zeros(len(level), task.P), rank], dim=1)
    positions = torch.arange(task.S).expand(len(tokens), -1)
    logits = model(noisy, positions, rank, read_every=read_every)
    logp = logits.log_softmax(-1)[..., task.P:, :]
    answer = tokens[:, task.P:, None].expand(*logp.shape[:-1], 1)
    weight = ((level > 0) & (level <= W)).float()
    return -(logp.gather(-1, answer)[..., 0] * weight).sum(-1) / weight.sum(-1)
""",
    "decode_pass": """\
    P, A, k = task.P, task.A, min(u, sampling.tokens_per_step)
    c = min(u, max(k, sampling.candidates))
    n, present = min(u - c, sampling.latents), []
    for row, luck in zip(tokens.tolist(), uniform(keys, 7 * u + 1, A).tolist()):
        unknown = [i for i in range(A) if row[P + i] == task.MASK]
        known = [i for i in range(A) if i not in unknown]
        if not rule.left_to_right:
            first = unknown[:c] if sampling.order == "left_to_right" else []
            unknown = first + sorted(set(unknown) - set(first), key=luck.__getitem__)
        cells = known + unknown[c:c + n] + unknown[:c]
        present.append([*range(P), *(P + i for i in cells)])
    present = torch.tensor(present)
    rank = rule.ranks(torch.tensor([[0] * (A - u) + [*range(1, n + 1)] + [n + 1] * c] * len(keys)))
    if rank is not None:
        rank = torch.cat([rank.new_zeros(len(keys), P), rank], dim=1)
    logits = model(torch.stack([t[p] for t, p in zip(tokens, present)]), present, rank)
    after, sure, noise = tokens.clone(), torch.zeros(len(keys)), uniform(keys, 7 * u + 2, A, task.K)
    for b, row in enumerate(present):
        probs = logits[b, -c:].softmax(-1)
        for j in certainty(probs, sampling.order).argsort(descending=True)[:k].tolist():
            cell, luck = row[j - c], noise[b, row[j - c] - P]
            after[b, cell] = sample_symbols(logits[b, j - c], sampling.temperature, luck)
            sure[b] += probs[j].max()
    return after, sure, {"present": present, "rank": rank, "logits": logits, "candidates": c}
""",
    "window_sees_itself": """\
    rank = torch.zeros(level.shape)
    if W is not None:
        rank[level > W] = float("inf")
    return rank
""",
    "draw_window": """\
    if window == "random":
        p = torch.tensor([math.log((w + 1) / w) for w in range(1, A + 1)])
        return 1 + torch.multinomial(p, 1, generator=generator)[0]
    return A if window == "all" else min(A, int(window))
""",
    "next_token_loss": """\
    rank = next_token_ranks(ranks, task, tokens.device)
    logits = model(tokens, torch.arange(task.S), rank, read_every=read_every)
    logp = logits[..., task.P - 1:-1, :].log_softmax(-1)
    answer = tokens[:, task.P:, None].expand(*logp.shape[:-1], 1)
    return -logp.gather(-1, answer)[..., 0].mean(-1)
""",
    "decode_next_token": """\
    P, A, B = task.P, task.A, len(start)
    rank = next_token_ranks(OBJECTIVES[objective].ranks, task, start.device)
    tokens, cache = start.clone(), model.new_cache() if use_cache else None
    sure, pairs = 0, 0
    for i in range(P, P + A):
        lo = 0 if not use_cache or i == P else i - 1
        r = rank if rank is CAUSAL else (rank[:i] if lo == 0 else CAUSAL)
        logits = model(tokens[:, lo:i], torch.arange(lo, i).expand(B, -1), r, cache=cache)[:, -1]
        tokens[:, i] = sample_symbols(logits, temperature, uniform(keys, i - P, task.K))
        sure, pairs = sure + logits.softmax(-1).max(-1).values, pairs + i - lo
    full = lambda x: torch.full((B,), x)
    return tokens, {"nfe": full(A), "tokens": full(pairs), "confidence": sure / A}
""",
}


@pytest.mark.parametrize("e", EXERCISES[:5], ids="12345")
def test_right_in_other_words_is_right(e, project, tmp_path):
    """Solutions that share no line with the project's also have the points."""
    tree = paste(project, project, tmp_path)
    for name, *functions in e.cuts:
        text = make_starter.cut((tree / name).read_text(encoding="utf-8"), functions, e.number)
        for function in functions:
            flag = f'    raise NotImplementedError("exercise {e.number}: {function}")\n'
            assert flag in text
            text = text.replace(flag, OTHERWISE[function])
        (tree / name).write_text(text, encoding="utf-8")
    for seed in range(5 if ALL else 1):
        cases = cases_of(e, seed)
        assert verdict(e, cases, answers_of(tree, e, cases)) == "", seed
    assert "failed" not in outcomes(str(tree), [e.red_tests]).values()


def test_planted_mistakes_are_caught():
    count = Counter(mistake.exercise for mistake in PLANTED)
    assert min(count[e.number] for e in EXERCISES) >= 5
    for mistake in PLANTED:
        ast.parse(changed(mistake))
    code, said, error = program("planted.py", "--part", "1/1" if ALL else "1/3")
    assert code == 0 and "THROUGH" not in said, said + error


def paste(project, starter, out, *names):
    """The starter, with these files of the project."""
    for f in starter.rglob("*"):
        if f.is_file():
            name = f.relative_to(starter).as_posix()
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(((project if name in names else starter) / name).read_bytes())
    return out


def test_points_of_a_student(project, starter, tmp_path):
    """Solved: 1 and 7. Not yet: 6. The same seed, the same report; nothing else on stdout."""
    tree = paste(project, starter, tmp_path, "model.py", "metrics.py")
    argv = ("grade.py", tree, "--only", 1, 6, 7, "--seed", 5)
    code, said, error = program(*argv, "--json", cwd=tmp_path)
    report = json.loads(said)
    assert code == 0 and error == "" and said.count("\n") == 1
    assert (report["points"], report["total"], report["seed"]) == (20, 30, 5)
    assert [row["points"] for row in report["exercises"]] == [10, 0, 10]
    assert report["exercises"][1] == {
        "number": 6, "title": EXERCISES[5].title, "points": 0, "of": 10, "passed": False,
        "why": "not written yet"}
    code, said, _ = program("grade.py", tree, "--only", 7)
    assert code == 0 and said == f"7   10 of 10  {EXERCISES[6].title}\n10 of 10 points\n"


@only_all
def test_the_project_has_all_points_and_the_starter_none(starter):
    for tree, points in ((ROOT, 100), (starter, 0)):
        code, said, _ = program("grade.py", tree, "--json")
        assert code == 0 and json.loads(said)["points"] == points, said


WILSON = (ROOT / "metrics.py").read_text(encoding="utf-8")
FAKE = 'open("answers.json", "w").write("[" + "{\\"is\\": [0, 1]}," * 14 + "{\\"is\\": [0, 1]}]")'


@pytest.mark.parametrize("code, word", [
    ("while True: pass", "not done after 4 seconds"),
    ("while True: print('passed ' * 10**6, flush=True)", "not done after 4 seconds"),
    ("import os; os._exit(0)", "ended without an answer"),
    ("import sys; sys.exit(0)", "ended without an answer"),
    ("import os; os.abort()", "ended by signal 6"),
    (f"import os; {FAKE}; os._exit(0)", "of another form|standard deviations|every rate"),
    ("bytearray(1 << 40)", "raised MemoryError"),
    (f"import sys; sys.path.insert(0, {str(ROOT)!r}); del sys.modules['metrics']; import metrics",
     "opened a file of the reference"),
    (f"open({str(ROOT / 'course' / 'hidden.py')!r}).read()", "opened a file of the reference")],
    ids=["loop", "flood", "_exit", "exit", "abort", "fake", "memory", "import", "read"])
def test_what_a_student_does_costs_that_exercise_alone(code, word, project, tmp_path):
    """Right code with something before it."""
    tree = paste(project, project, tmp_path)
    (tree / "metrics.py").write_text(f"{code}\n{WILSON}", encoding="utf-8")
    assert re.search(word, why_not(tree, EXERCISES[6], 0, 4 if "done" in word else 60))


def test_comparing_happens_elsewhere(project, tmp_path):
    """Wrong code in a process where everything is equal to everything."""
    tree = paste(project, project, tmp_path)
    patches = "import builtins, math, torch\nbuiltins.abs = lambda x: 0\n" \
              "torch.equal = torch.allclose = math.isfinite = lambda *a, **kw: True\n"
    (tree / "metrics.py").write_text(patches + WILSON.replace("z=1.96", "z=1.6"), encoding="utf-8")
    assert "standard deviations" in why_not(tree, EXERCISES[6], 0, 60)


def test_a_changed_test_costs_its_exercise(project, tmp_path):
    tree = paste(project, project, tmp_path)
    with open(tree / "course" / "tests" / "test_ex7.py", "a") as file:
        file.write("\ndef test_more(): pass\n")
    assert "was changed" in why_not(tree, EXERCISES[6], 0, 60)


def test_noise_is_no_mistake(project, tmp_path):
    """Code that prints a lot and is right has its points."""
    tree = paste(project, project, tmp_path)
    (tree / "metrics.py").write_text(f"print('x' * 10**7)\n{WILSON}", encoding="utf-8")
    assert why_not(tree, EXERCISES[6], 0, 60) == ""


@pytest.mark.parametrize("argv, word", [
    (["/no/such/tree"], "is no folder"), ([ROOT / "data"], "no tree of this project"),
    ([ROOT, "--seconds", "0"], "--seconds"), ([ROOT, "--only", "10"], "--only"), ([], "TREE")])
def test_bad_arguments(argv, word, capsys):
    code = run(grade.main, [str(x) for x in argv])
    said, error = capsys.readouterr()
    assert code == 2 and said == "" and error.count("\n") == 1 and word in error


@pytest.mark.parametrize("answers", [None, {}, [], [{}], [{"is": None}], [{"is": {"sees": 3}}], [7],
                                     [{"error": None}], [{"is": {"dtype": [], "sees": "x"}}]])
def test_answers_of_any_form_are_judged(answers):
    assert verdict(EXERCISES[0], cases_of(EXERCISES[0], 0), answers)


# -- the page --


def test_the_page_is_short_and_knows_the_table():
    assert len(README.encode()) <= 8192
    assert not [line for line in README.splitlines() if len(line) > 160]
    for e in EXERCISES:
        row, = re.findall(rf"^\| {e.number} \| .* \| {e.points} \|$", README, re.M)
        assert all(f"`{f}`" in row for _, *functions in e.cuts for f in functions), row


def test_the_colab_cells_run_as_plain_shell(project, tmp_path):
    """The clone is a copy, nothing is installed, and a few boards will do."""
    cells = re.findall(r"```\n%%bash\n(.*?)```", README, re.S)
    assert len(cells) == 3 and "git clone" in cells[0] and "--num 200" in cells[1]
    for cell in cells:
        cell = re.sub(r"^git clone .* (\S+)$", rf"cp -r '{project}' \1", cell, flags=re.M)
        cell = re.sub(r"^pip install .*\n", "", cell, flags=re.M).replace("--num 200", "--num 4")
        env = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1",
               "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-e", "-c", cell], cwd=tmp_path, env=env,
                              capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert re.search(r"^ +all +1332 .*% to .*=-", done.stdout, re.M), done.stdout
