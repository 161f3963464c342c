"""Damaged, foreign and hostile checkpoints: one line, exit code 2, and nothing is written."""
import copy
import json
import os
import pickle
import random
import shutil

import pytest
import torch

import sample
import train
from plumbing.checkpoint import read_log, replace_file, save_checkpoint, write_text
from plumbing.cli import BadInput, run


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile_was_here",)


@pytest.fixture(scope="module")
def good(tiny_checkpoints):
    return torch.load(tiny_checkpoints["scdm"], weights_only=True)


@pytest.fixture
def programs(tmp_path, tiny_checkpoints, data_dir, monkeypatch, capsys):
    """-> call(file) -> [(exit code, last line), ...] of sample.py, --resume and --init with it.

    Each must end with 0, or with 2, one printable line and nothing written.
    """
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(tiny_checkpoints["scdm"].parent / "log.csv", out)
    small = ["--max-steps", "4", "--eval-samples", "2", "--data-dir", data_dir]
    fresh = ["--preset", "sudoku4", "--objective", "scdm", "--width", "16", "--depth", "1",
             "--heads", "2", "--batch-size", "8", *small, "--out", "new"]
    file = out / "ckpt.pt"
    calls = [(sample.main, ["--ckpt", str(file)]),
             (train.main, ["--out", str(out), "--resume", *small]),
             (train.main, [*fresh, "--init", str(file)])]

    def call(source):
        results = []
        for main, argv in calls:
            shutil.copy(source, file)
            before = {f: f.read_bytes() for f in out.iterdir()}
            code = run(main, argv)
            error = capsys.readouterr().err
            assert "Traceback" not in error and code in (0, 2), (argv, error)
            lines = error.strip().splitlines()
            assert all(line.isprintable() for line in lines), lines
            if code:
                assert len(lines) == 1, lines
                assert {f: f.read_bytes() for f in out.iterdir()} == before
                assert not (tmp_path / "new").exists()
            shutil.rmtree(tmp_path / "new", ignore_errors=True)
            results.append((code, lines[-1]))
        return results

    return call


@pytest.fixture
def refused(programs, tmp_path):
    """-> call(checkpoint): all three programs refuse it -> their messages, as one text."""
    def call(checkpoint):
        torch.save(checkpoint, tmp_path / "mutant")
        results = programs(tmp_path / "mutant")
        assert [code for code, _ in results] == [2, 2, 2], results
        return "\n".join(line for _, line in results)
    return call


def test_hostile_and_damaged_files(tiny_checkpoints, good, tmp_path, programs, capsys):
    """Truncated, empty, foreign, of another size, and a pickle that runs code."""
    whole = tiny_checkpoints["scdm"].read_bytes()
    files = {"truncated": whole[:len(whole) // 2], "empty": b"", "text": b"hello",
             "pickle": pickle.dumps(Hostile())}
    for name, body in files.items():
        (tmp_path / name).write_bytes(body)
    torch.save(Hostile(), tmp_path / "hostile")
    torch.save({"weights": 1}, tmp_path / "foreign")
    torch.save({**good, "config": {"task": "sudoku-gen"}}, tmp_path / "old")
    torch.save({**good, "config": {**good["config"], "width": 48}}, tmp_path / "resized")
    for name in (*files, "hostile", "foreign", "old", "resized"):
        results = programs(tmp_path / name)
        if name == "resized":
            assert results.pop()[0] == 0  # --init has a config of its own
        for code, line in results:
            assert code == 2 and f"checkpoint {tmp_path}/run/ckpt.pt" in line, line
    assert not (tmp_path / "hostile_was_here").exists()
    for path, words in (("none", "does not exist"), (".", "is not a file")):
        assert run(sample.main, ["--ckpt", path]) == 2 and words in capsys.readouterr().err


WEIGHT = "blocks.0.attn.proj.weight"


NOT_FLOATS = f"weight {WEIGHT} is not an array of floats"


@pytest.mark.parametrize("name, value, words", [
    (WEIGHT, torch.ones(16, 15),
     f"weight {WEIGHT} has shape (16, 15), but the config says (16, 16)"),
    (WEIGHT, torch.ones(16, 16, dtype=torch.int64), NOT_FLOATS),
    (WEIGHT, torch.ones(16, 16, dtype=torch.complex64), NOT_FLOATS),
    (WEIGHT, torch.eye(16).to_sparse(), NOT_FLOATS),
    (WEIGHT, torch.ones(1).expand(10**7, 10**7), NOT_FLOATS),  # 4 bytes that claim to be 400 TB
    (WEIGHT, torch.ones(16, 16, device="meta"), NOT_FLOATS),
    (WEIGHT, torch.full((16, 16), float("nan")), "contains nan or inf"),
    (WEIGHT, torch.full((16, 16), 1e300, dtype=torch.float64), "contains nan or inf"),
    (WEIGHT, "weight", NOT_FLOATS),
    (WEIGHT, None, f"weight {WEIGHT} has shape missing"),
    ("a\x1b[31m", torch.ones(1), r"a\x1b[31m has shape (1,), but the config says there is none"),
    (3, torch.ones(1), "weight 3 is not an array"),
    (None, [1], "its model is not a dict"),
])
def test_weights_that_do_not_fit(good, refused, name, value, words):
    weights = {**good["model"], name: value} if name else value
    if value is None:
        del weights[name]
    assert refused({**good, "model": weights}).count(words) == 3


def test_a_huge_model_is_refused_before_it_takes_memory(good, programs, tmp_path):
    """Its config asks for 16 GB; shapes are compared first. (--init has a config of its own.)"""
    config = {**good["config"], "width": 16384, "depth": 1, "heads": 1}
    torch.save({**good, "config": config}, tmp_path / "huge")
    for code, line in programs(tmp_path / "huge")[:2]:
        assert code == 2 and "has shape (7, 16), but the config says (7, 16384)" in line


@pytest.mark.parametrize("name, value", [
    ("step", "3"), ("step", 3.0), ("step", True), ("step", -1), ("step", 10**30), ("step", None),
    ("seconds", "1"), ("seconds", float("nan")), ("seconds", -1.0), ("solved", 1),
    ("rng", None), ("rng", torch.ones(3)), ("versions", None), ("versions", {"device": ["cpu"]}),
    ("versions", {3: "cpu"}), ("optimizer", None), ("optimizer", {"state": {}})],
    ids=str)
def test_progress_of_the_wrong_type(good, refused, name, value):
    words = f"its {name} is not legal; the file is damaged"
    assert refused({**good, name: value}).count(words) == 3


DAMAGES = [
    lambda c, state: c["optimizer"].clear(),
    lambda c, state: c["optimizer"].append({}),
    lambda c, state: c["optimizer"].__setitem__(0, None),
    lambda c, state: c["optimizer"][0].pop("state"),
    lambda c, state: state.pop(0),
    lambda c, state: state.update({99: state[0]}),
    lambda c, state: state.update({0: None}),
    lambda c, state: state[0].pop("exp_avg"),
    lambda c, state: state[0].update(exp_avg=torch.ones(2, 2)),
    lambda c, state: state[0].update(exp_avg=1.0),
    lambda c, state: state[0].update(exp_avg=state[0]["exp_avg"] * float("nan")),
    lambda c, state: state[0].update(extra=torch.ones(())),
    lambda c, state: state[0].update(step=torch.ones(3)),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=range(len(DAMAGES)))
def test_an_optimizer_that_does_not_fit(good, programs, tmp_path, damage):
    """Only --resume reads the optimiser; sampling and --init read the weights."""
    checkpoint = copy.deepcopy(good)
    damage(checkpoint, checkpoint["optimizer"][0]["state"])
    torch.save(checkpoint, tmp_path / "mutant")
    (a, _), (b, line), (c, _) = programs(tmp_path / "mutant")
    assert (a, b, c) == (0, 2, 0)
    assert "its optimizer does not fit; it is damaged; start a new --out with --init" in line


def test_an_rng_that_does_not_fit(good, programs, tmp_path):
    for rng in (good["rng"][:-1], torch.zeros_like(good["rng"])):
        torch.save({**good, "rng": rng}, tmp_path / "mutant")
        (a, _), (b, line), (c, _) = programs(tmp_path / "mutant")
        assert (a, b, c) == (0, 2, 0) and "its rng is not a state of a generator" in line


def mutate(tree, rng):
    """Replace a random part by something wrong, remove a part, or add one."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = rng.choice(keys)
        if not isinstance(tree[key], dict | list) or rng.random() < 0.3:
            break
        tree = tree[key]
    junk = [None, True, -1, 3, 10**30, 0.5, float("inf"), "", "x\x1b[31m\n", "\ud800", b"\0", [],
            {}, (1, 2), {"a": 1}, json.loads("[" * 100 + "]" * 100), torch.ones(3), torch.ones(0),
            torch.tensor(float("nan")), torch.ones(2, dtype=torch.int64),
            torch.ones(1).expand(10**9, 10**9)]
    what = rng.random()
    if what < 0.1:
        del tree[key]
    elif what < 0.2 and isinstance(tree, dict):
        tree[rng.choice([3, None, "extra\x1b", ("a",), 2.5])] = rng.choice(junk)
    else:
        tree[key] = rng.choice(junk)


def test_fuzz(good, programs, tmp_path):
    """80 mutants: each is used without an error, or refused with one line."""
    rng = random.Random(0)
    codes = []
    for _ in range(80):
        mutant = copy.deepcopy(good)
        mutate(mutant, rng)
        torch.save(mutant, tmp_path / "mutant")
        codes += [code for code, _ in programs(tmp_path / "mutant")]
    assert 80 < codes.count(2) < 230


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    """An exception while writing, a full disk, a folder in place of the file."""
    file = tmp_path / "f"
    file.write_text("old")

    def fail(stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(file, fail)
    (tmp_path / "f.tmp").symlink_to("/dev/full")
    with pytest.raises(BadInput, match="No space left on device; the old file is intact"):
        write_text(file, "new")
    (tmp_path / "f.tmp").symlink_to("/dev/full")
    with pytest.raises(BadInput, match="No space left on device; the previous one is intact"):
        save_checkpoint({"a": torch.ones(10**6)}, file)
    assert [f.name for f in tmp_path.iterdir()] == ["f"] and file.read_text() == "old"
    (tmp_path / "folder" / "x").mkdir(parents=True)
    with pytest.raises(BadInput, match="cannot write .*folder: it is a directory$"):
        write_text(tmp_path / "folder", "new")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["f", "folder"]


def test_a_bad_log_is_refused(tmp_path, tiny_checkpoints):
    assert [r["step"] for r in read_log(tiny_checkpoints["scdm"].parent / "log.csv")] == ["3"]
    (tmp_path / "log.csv").write_bytes(b"\xff\xfe\0")
    for file in (tmp_path / "none", tmp_path, tmp_path / "log.csv"):
        with pytest.raises(BadInput, match="cannot read log"):
            read_log(file)
