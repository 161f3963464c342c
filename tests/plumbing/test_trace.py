"""Traces: equal to what decode() did, small, refused if meaningless; data in a page cannot run.

    B batch   P prompt   A answer cells   S = P + A   K symbols
"""
import base64
import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch

import decoders
import diffusion
import sample
from conftest import PUZZLE, keys_for, random_model, task_config
from data import make_task
from model import CAUSAL
from mtp import next_token_ranks
from objectives import OBJECTIVES, SamplingParams, make_sampling_params
from plumbing.cli import ALL, BadInput, run
from plumbing.trace import MOST, PLACE, embed, to_text, trace
from sample import decode, decode_next_token
from viewer import make_live

ROOT = Path(__file__).parents[2]
SIX = ROOT / "results/demo-dial/scdm-seed0.pt"
NINE = ROOT / "results/sudoku9-cpu/mdm-seed0.pt"
GRAPH = "1,2|2,3|1,4|4,5/1,3"


def traced(task, objective, start, sampling, model, references=None):
    """Decode start (B, S) -> its trace as the page reads it, tokens (B, S), stats.

    Without a history the answers must be the same.
    """
    history, keys = [], keys_for(start)
    if OBJECTIVES[objective].next_token:
        how = (model, task, objective, start, sampling.temperature, keys)
        tokens, stats = decode_next_token(*how, history=history)
        without, _ = decode_next_token(*how)
    else:
        how = (model, task, objective, start, sampling, keys)
        tokens, stats = decode(*how, history)
        without, _ = decode(*how)
    assert torch.equal(tokens, without)
    answers = tokens[:, task.P:]
    stats["solved"] = task.check(start, answers)
    about = {"objective": objective, "seconds": 5.0}
    text = to_text(trace(task, start, references, history, answers, stats, about))
    return json.loads(text), tokens, stats


def bytes_of(text):
    return torch.tensor(list(base64.b64decode(text)))


def check_step(model, task, objective, before, step):
    """Predict a step again from its trace alone: who is present, and who sees whom."""
    at = torch.tensor([s for s, letter in enumerate(step["who"]) if letter in "klc"])
    rank = CAUSAL if step["rank"] == "causal" else step["rank"]
    rank = torch.tensor(rank) if isinstance(rank, list) else rank
    logits = model(before[at].unsqueeze(0), at, rank)[0]  # (T, K)
    if objective == "ar":
        assert step["who"].count("n") == 1 and step["who"].index("n") == len(at)
        logits = logits[-1:]
    else:
        assert "n" not in step["who"]
        assert all((before[s] == task.MASK) == (step["who"][s] in "lc") for s in at.tolist())
        logits = logits[before[at] == task.MASK]
    probs = logits.softmax(dim=-1).double()  # (q, K)
    entropy = -(probs * probs.log()).sum(dim=-1) / math.log(task.K)
    assert step["probs"] and len(bytes_of(step["entropy"])) == len(probs)
    assert (bytes_of(step["probs"]).view(-1, task.K) - 255 * probs).abs().max() <= 0.51
    assert (bytes_of(step["entropy"]) - 255 * entropy).abs().max() <= 0.51


def task_of(name, data_dir):
    if name == "star":
        return make_task(task_config("star", path_len=4, labels=9, data_dir=data_dir))
    if name == "planning":
        return make_task(task_config("planning", data_dir=data_dir))
    kind, _, layout = name.partition("/")
    return make_task(task_config(kind, layout=layout or "inplace", data_dir=data_dir))


LEFT_TO_RIGHT = [SamplingParams("left_to_right", 1, 0, 1, 0.0)]
SETTINGS = {
    "mdm": [SamplingParams("confidence", ALL, ALL, 1, 0.0),
            SamplingParams("random", 2, ALL, 2, 1.0)],
    "sidm": [SamplingParams("random", 1, 0, 1, 1.0), SamplingParams("margin", 4, 0, 2, 0.0)],
    "scdm": [SamplingParams("entropy", 3, n, k, 0.0) for n, k in ((0, 1), (2, 3), (ALL, 1))],
    "bcdm": [SamplingParams("entropy", 3, n, k, 0.0) for n, k in ((2, 3), (ALL, 1))],
    "mtp": [*LEFT_TO_RIGHT, SamplingParams("left_to_right", 2, 3, 2, 0.0)],
    "mtp-no-latents": LEFT_TO_RIGHT,
    "ar": [SamplingParams("left_to_right", 1, 0, 1, 1.0)]}


@pytest.mark.parametrize("name", ["sudoku-gen", "sudoku", "sudoku/prompt", "star", "planning"])
@pytest.mark.parametrize("objective", SETTINGS)
def test_a_trace_is_what_decode_did(name, objective, data_dir):
    """Each step is predicted again from the trace, and the trace is replayed to its end.

    Distributions (up to 8-bit rounding), present cells, committed cells, costs.
    """
    if (name, objective) == ("sudoku", "ar"):
        pytest.skip("next token cannot see givens in place")
    task = task_of(name, data_dir)
    model, (start, references) = random_model(task), task.test_set(3)
    for sampling in SETTINGS[objective]:
        found, tokens, stats = traced(task, objective, start, sampling, model, references)
        for b, one in enumerate(found["samples"]):
            now, known = start[b].clone(), (start[b] != task.MASK)
            for step in one["steps"]:
                check_step(model, task, objective, now, step)
                u, c = int((now == task.MASK).sum()), step["who"].count("c")
                assert len(step["set"]) == min(u, sampling.tokens_per_step) and not step["undone"]
                if objective != "ar":
                    assert c == min(u, max(sampling.candidates, sampling.tokens_per_step))
                    assert step["who"].count("l") == min(sampling.latents, u - c)
                for cell, symbol in step["set"]:
                    assert step["who"][task.P + cell] in "cn"
                    now[task.P + cell] = symbol
            assert torch.equal(now, tokens[b]) and torch.equal(now[known], start[b][known])
            assert len(one["steps"]) == one["nfe"] == stats["nfe"][b]
            assert sum(step["tokens"] for step in one["steps"]) == one["tokens"]
            assert one["solved"] == bool(task.check(start[b:b + 1], tokens[b:b + 1, task.P:]))
            assert one["mistakes"] == task.mistakes(start[b], tokens[b, task.P:])
            last = [step["mistakes"] for step in one["steps"] if "mistakes" in step]
            assert (last or [[]])[-1][:7] == one["mistakes"][:7]
            assert max(map(len, last), default=0) <= 8
            assert references is None or one["reference"] == references[b].tolist()
            seconds = [step["seconds"] for step in one["steps"]]
            assert seconds == sorted(seconds) and 0 <= seconds[0] < seconds[-1] <= 5
        assert max(one["steps"][-1]["seconds"] for one in found["samples"]) == 5


def test_what_a_path_needs_to_be_drawn(data_dir):
    task = task_of("star", data_dir)
    (puzzle, *_), = task.read("1,2|2,3|3,7|1,4|4,5|5,6/1,7", "here")[0]
    start = torch.tensor([puzzle])
    found, *_ = traced(task, "mtp", start, SETTINGS["mtp"][0], random_model(task))
    (one,) = found["samples"]
    assert one["edges"] == [[1, 2], [2, 3], [3, 7], [1, 4], [4, 5], [5, 6]]
    assert one["ends"] == [1, 7] and found["task"]["walk"] == [[0, 1], [1, 2], [2, 3]]
    planning = task_of("planning", data_dir)
    found, *_ = traced(planning, "mdm", planning.test_set(1)[0], SETTINGS["mdm"][0],
                       random_model(planning))
    assert found["task"]["walk"] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


@pytest.fixture
def call(tmp_path, tiny_checkpoints, capsys, monkeypatch):
    """-> call(checkpoint, *argv) -> exit code, the lines of stderr."""
    monkeypatch.chdir(tmp_path)

    def call(checkpoint, *argv):
        checkpoint = tiny_checkpoints.get(checkpoint, checkpoint)
        code = run(sample.main, ["--ckpt", str(checkpoint), "--device", "cpu", *argv])
        lines = capsys.readouterr().err.splitlines()
        return code, [line for line in lines if not line.startswith("device cpu")]
    return call


def test_sizes(call, data_dir):
    """A 6x6 sample has at most 50 KB, a 9x9 one 200 KB: whole boards, all latents."""
    assert call(SIX, "--trace", "a.json")[0] == 0
    assert 5_000 < Path("a.json").stat().st_size <= 50_000
    # 9x9, without any given, the ranks of scdm with every latent; in place and with a prompt
    assert call("sudoku9", "--puzzle", "." * 81, "--order", "random", "--trace", "b.json")[0] == 0
    assert 50_000 < Path("b.json").stat().st_size <= 200_000
    assert len(json.loads(Path("b.json").read_text())["samples"][0]["steps"]) == 81
    task = make_task(task_config("sudoku", board_size=9, layout="prompt", data_dir=data_dir))
    start = torch.tensor([[task.BLANK] * 81 + [task.MASK] * 81])
    sampling = make_sampling_params("scdm", task, order="random")
    found, *_ = traced(task, "scdm", start, sampling, random_model(task))
    assert 100_000 < len(to_text(found)) <= 200_000


def test_several_samples_of_every_kind(call):
    """From the command line: the file, and nothing on stderr but notes about puzzles."""
    for name, argv in (("scdm", ["--num", "3", "--latents", "3"]), ("ar", ["--num", "3"]),
                       ("mtp", ["--num", "3", "--window", "2"]), ("star", ["--puzzle", GRAPH]),
                       ("prompt9", ["--puzzle", PUZZLE])):
        code, lines = call(name, *argv, "--trace", f"new/{name}.json")
        assert code == 0 and len(lines) == (name == "star")  # its puzzle has no reference
        text = Path(f"new/{name}.json").read_text(encoding="ascii")
        found = json.loads(text)
        assert (found["format"], found["version"]) == ("nanolatent trace", 1)
        assert len(found["samples"]) == (3 if "--num" in argv else 1)
        assert len(found["symbols"]) == found["task"].get("side", 9)
        steps = sum(len(one["steps"]) for one in found["samples"])
        assert text.count("\n") == steps + 1 + len(found["samples"])  # a line per step
    assert found["about"]["objective"] == "ar" and found["about"]["seed"] == 0
    given = found["samples"][0]["given"]
    assert [d + 1 if d >= 0 else "." for d in given[:5]] == [5, 3, ".", ".", 7]
    assert set(found["samples"][0]["start"]) == {-1}


@pytest.mark.parametrize("argv, words", [
    (["--num", "17"], f"--trace takes at most {MOST} samples, not 17; give --num {MOST}"),
    (["--restarts", "2"], "--trace shows a single decode, but --restarts is not one"),
    (["--bound"], "--trace shows a single decode, but --bound is not one"),
    (["--trace", "."], "cannot write .: it is a directory"),
    (["--trace", ""], "'' is not a path"),
    (["--trace", "/dev/null/x.json"], "cannot write /dev/null/x.json: "),
])
def test_what_cannot_be_traced(call, argv, words):
    code, (line,) = call("scdm", "--trace", "a.json", *argv)
    assert code == 2 and words in line and not Path("a.json").exists()


def test_data_in_the_page_cannot_run(call):
    """No data can add a script element to the page."""
    page = (ROOT / "viewer/viewer.html").read_text(encoding="utf-8")
    assert page.count(PLACE) == 1
    assert call("scdm", "--trace", "a.html")[0] == 0
    evil = "</script><script>alert(1)</script><!--<script>"
    for made in (Path("a.html").read_text(encoding="utf-8"),
                 embed(json.dumps({"samples": evil}), PLACE)):
        assert made.lower().count("<script") == page.lower().count("<script")
        assert made.count("<!--") == page.count("<!--")
        data = json.loads(re.search(r'id="trace">(.*?)</script>', made, re.S).group(1))
    assert data == {"samples": evil}
    with pytest.raises(BadInput, match="has no place for data"):
        embed("{}", PLACE, "<html></html>")


def test_the_ranks_of_another_next_token_objective(data_dir, monkeypatch):
    """Its prompt sees itself both ways: the trace has its ranks 0, then 1, 2, ..."""
    task = task_of("star", data_dir)
    rule = dataclasses.replace(OBJECTIVES["ar"], ranks=diffusion.semi_causal)
    monkeypatch.setitem(OBJECTIVES, "ar", rule)
    model, start = random_model(task), task.test_set(2)[0]
    found, tokens, _ = traced(task, "ar", start, SETTINGS["ar"][0], model)
    ranks = next_token_ranks(rule.ranks, task, torch.device("cpu")).tolist()
    now = start[0].clone()
    for i, step in enumerate(found["samples"][0]["steps"]):
        assert step["rank"] == ranks[:task.P + i]
        check_step(model, task, "ar", now, step)
        now[task.P + i] = step["set"][0][1]


@pytest.mark.parametrize("name", decoders.DECODERS)
def test_every_decoder_is_traced(name, data_dir):
    """The trace, replayed to its end, gives the answer and its costs.

    Decoders whose passes see the whole board or leave cells out are predicted again.
    """
    task = task_of("sudoku", data_dir)
    model, (start, references) = random_model(task), task.test_set(4)
    params = decoders.DECODERS[name].settings()
    if name == "block":
        params.update(size=4, later="absent")
    sampling, history = SamplingParams("", 1, 0, 1, 0.0, name, params), []
    tokens, stats = decoders.decode(model, task, "mdm", start, sampling, keys_for(start), history)
    answers = tokens[:, task.P:]
    stats["solved"] = task.check(start, answers)
    found = json.loads(to_text(trace(task, start, references, history, answers, stats,
                                     {"objective": "mdm", "decoder": name, "seconds": None})))
    for b, one in enumerate(found["samples"]):
        now = start[b].clone()
        for step in one["steps"]:
            if name in ("plain", "threshold", "rcr", "klass", "block", "sched"):
                check_step(model, task, "mdm", now, step)
            for cell in step["undone"]:
                now[task.P + cell] = task.MASK
            for cell, symbol in step["set"]:
                now[task.P + cell] = symbol
        assert torch.equal(now, tokens[b])
        assert sum(step["passes"] for step in one["steps"]) == stats["nfe"][b] == one["nfe"]
        assert sum(step["tokens"] for step in one["steps"]) == stats["tokens"][b] == one["tokens"]


def test_input_files_are_not_overwritten(call, tmp_path, capsys):
    """--trace, --answers and make_live refuse the checkpoint and the puzzles as output."""
    ckpt, puzzles = tmp_path / "m.pt", tmp_path / "p.txt"
    ckpt.write_bytes(NINE.read_bytes())
    puzzles.write_text(PUZZLE + "\n", encoding="utf-8")
    before = ckpt.read_bytes()
    for flag, file in (("--trace", ckpt), ("--answers", tmp_path / "x" / ".." / "m.pt"),
                       ("--answers", puzzles)):
        argv = ["--ckpt", str(ckpt), "--puzzles", str(puzzles), flag, str(file)]
        assert run(sample.main, argv) == 2
        assert "would overwrite the file of" in capsys.readouterr().err
    assert run(make_live.main, [str(ckpt), "--ckpt", str(ckpt)]) == 2
    assert ckpt.read_bytes() == before and puzzles.read_text(encoding="utf-8") == PUZZLE + "\n"
