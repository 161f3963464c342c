"""The model in the page: it computes the same logits and boards as Python; a visitor uses it."""
import base64
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import webdriver

from data.sudoku import Sudoku
from noise import certainty, sample_keys, uniform
from objectives import make_sampling_params
from plumbing.checkpoint import load_model
from plumbing.cli import run
from plumbing.trace import trace
from sample import decode

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "viewer"))
import make_live  # noqa: E402

needs_browser = pytest.mark.skipif(webdriver.missing() is not None,
                                   reason=webdriver.missing() or "")
BOARD = "256341314256532614461523123465645132"  # a valid one


@pytest.fixture(scope="module")
def shipped():
    return load_model(make_live.SHIPPED, torch.device("cpu"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The live page."""
    file = tmp_path_factory.mktemp("live") / "live.html"
    assert run(make_live.main, [str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = webdriver.Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser, made):
    """The live page, its first decode stopped."""
    browser.log()
    browser.size(1280, 1000)
    browser.open(made.as_uri())
    browser.run("live.run++")
    yield browser
    assert browser.log() == []


@needs_browser
def test_logits_are_those_of_pytorch(page, shipped):
    """Within 1e-3, from the same weights: all cells, a few, the prompt alone; three rankings."""
    model, task, _ = shipped
    generator = torch.Generator().manual_seed(0)
    for T in (1, 6, 19, 37):
        positions = torch.randperm(task.S, generator=generator)[:T]
        tokens = torch.randint(task.V, (T,), generator=generator)
        for rank in (torch.zeros(T), torch.arange(T), torch.randint(-1, 4, (T,),
                                                                    generator=generator)):
            with torch.no_grad():
                expected = model(tokens[None], positions, rank)[0]  # (T, K)
            found = page.run("return Array.from(forward(live.model, ...arguments))",
                             tokens.tolist(), positions.tolist(), rank.tolist())
            found = torch.tensor(found).view(T, task.K)
            assert (found - expected).abs().max() < 1e-3 and expected.std() > 0.1


def test_what_a_page_knows_of_its_model(shipped):
    model, task, config = shipped
    for asked in (False, True):
        text = make_live.model_text(model, task, replace(config, qk_norm=asked))
        assert json.loads(text)["qkNorm"] is asked


@needs_browser
def test_logits_of_another_model(page, shipped):
    """The same page with a model that normalises queries and keys."""
    model, task, _ = load_model(make_live.SHIPPED, torch.device("cpu"))
    for block in model.blocks:
        block.attn.qk_norm = True
    tokens, positions, rank = [task.BOS, *range(6)], list(range(7)), [0, 0, 1, 2, 2, 3, 0]
    with torch.no_grad():
        expected = model(torch.tensor([tokens]), torch.tensor(positions), torch.tensor(rank))[0]
        without = shipped[0](torch.tensor([tokens]), torch.tensor(positions), torch.tensor(rank))[0]
    found = page.run("return Array.from(forward({ ...live.model, qkNorm: true }, ...arguments))",
                     tokens, positions, rank)
    assert (torch.tensor(found).view(7, task.K) - expected).abs().max() < 1e-3
    assert (without - expected).abs().max() > 0.1


@needs_browser
def test_random_numbers_are_the_same_bits(page):
    for seed, start, differ in ((0, [8, *[7] * 36], True), (7, [8, 1, 2, *[7] * 34], False)):
        keys = sample_keys(seed, torch.tensor([start]), copies_differ=differ)
        found = page.run("return uniform(sampleKey(...arguments), 5, 40)", seed, start, differ)
        assert found == uniform(keys, 5, 40)[0].tolist()


STEPS = """
const [givens, boards, sampling, differ] = arguments, { model } = live;
const start = [model.BOS, ...givens.map((s) => (s < 0 ? model.MASK : s))];
const key = sampleKey(sampling.seed, start, differ);
return boards.map((board) => onePass(model, board, sampling, key));
"""


@needs_browser
@pytest.mark.parametrize("order, n, temperature", [
    ("random", 0, 1.0), ("random", 5, 1.0), ("random", 99, 0.0), ("confidence", 3, 0.0),
    ("margin", 1, 3.0), ("entropy", 2, 3.0), ("left_to_right", 4, 0.0)])
def test_steps_are_those_of_sample_py(page, shipped, order, n, temperature):
    """The same seed, givens and boards: the same cells in the pass, ranks, costs and symbols.

    Where the model is equally certain of two candidates to 1e-4, rounding may choose either; at
    least half of the steps must agree.
    """
    model, task, _ = shipped
    givens = [int(d) - 1 if i % 9 < 2 else -1 for i, d in enumerate(BOARD)]  # 28 unknown
    start = torch.tensor([[task.BOS] + [task.MASK if s < 0 else s for s in givens]])
    keys, history = sample_keys(1, start, copies_differ=temperature > 0), []
    sampling = make_sampling_params("scdm", task, order=order, latents=n, temperature=temperature)
    tokens, stats = decode(model, task, "scdm", start, sampling, keys, history)
    stats["solved"] = task.check(start, tokens[:, 1:])
    made = trace(task, start, None, history, tokens[:, 1:], stats, {})["samples"][0]["steps"]
    after = [step["tokens"][0, 1:] for step in history[:-1]]
    boards = [givens, *(cells.masked_fill(cells == task.MASK, -1).tolist() for cells in after)]
    asked = {"order": order, "latents": n, "seed": 1, "temperature": temperature}
    found, decided = page.run(STEPS, givens, boards, asked, temperature > 0), 0
    for step, mine, theirs in zip(history, made, found, strict=True):
        for name in ("who", "tokens", "rank"):
            assert theirs[name] == mine[name], name
        away = [abs(a - b) for name in ("probs", "entropy") for a, b in
                zip(base64.b64decode(mine[name]), base64.b64decode(theirs[name]), strict=True)]
        assert max(away) <= 1
        c = step["candidates"]
        sure = certainty(step["logits"][0, -c:].softmax(dim=-1), order)
        decided += theirs["set"] == mine["set"]
        if theirs["set"] != mine["set"]:
            candidates = step["present"][0, -c:].tolist()
            at = [candidates.index(1 + one["set"][0][0]) for one in (mine, theirs)]
            assert at[0] != at[1] and abs(sure[at[0]] - sure[at[1]]) < 1e-4
    assert decided >= len(history) / 2


@needs_browser
def test_certainty_is_that_of_noise_py(page):
    probs = torch.rand(20, 6, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    probs[0] = torch.tensor([0.0, 0, 1, 0, 0, 0])
    for order in ("confidence", "margin", "entropy"):
        found = page.run("return arguments[0].map((p) => certainty(p, arguments[1]))",
                         probs.tolist(), order)
        assert found == pytest.approx(certainty(probs, order).tolist(), abs=1e-6)


@needs_browser
def test_mistakes_are_said_as_here(page):
    task = type("Task", (), {"N": 6})
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        board = torch.randint(-1, 6, (36,), generator=generator)
        shown = board.masked_fill(board < 0, 7).tolist()
        found = page.run("return mistakesOf(live.model, arguments[0])", board.tolist())
        assert found == Sudoku._repeated(task, shown)


@needs_browser
def test_a_visitor(page):
    """Gives digits, sees both boards decoded, commits another digit by hand, empties the board."""
    def press(cell, key, panel=2):
        page.run("document.querySelector(arguments[0]).focus()",
                 f".panel:nth-child({panel}) .cell[data-cell='{cell}']")
        page.press("Shift")  # a browser may hold the news of focus back until there is a key
        webdriver.wait(page, f"return now.cell === {cell}")
        page.press(key)

    def done(changed):  # what the key or click changes: a browser may handle it a little later
        webdriver.wait(page, f"return {changed}")
        webdriver.wait(page, "return live.boards.every((b) => !b.sample.boards.at(-1).includes(-1))"
                             " && live.status.textContent === ''")

    page.run("live.start = arguments[0]; now.step = 0; show()",
             [int(d) - 1 if i > 3 else -1 for i, d in enumerate(BOARD)])
    press(3, "3")
    done("live.start[3] === 2")
    assert page.run("return live.start.slice(0, 4)") == [-1, -1, -1, 2]
    assert page.run("return live.boards.map((b) => b.steps.length)") == [3, 3]
    assert page.run("return live.boards.map((b) => b.steps[0].tokens)") == [35, 37]  # n = 0, all
    assert page.text("#where") == "step 0 of 3"  # there the next digit is given
    # at the first pass of the right board another digit
    page.run("location.hash = '#step=1'")
    webdriver.wait(page, "return now.step === 1")
    before = page.run("return live.boards[0].steps.map((s) => s.set)")
    press(0, "4")
    done("String(live.boards[1].steps[0]?.set) === '0,3'")
    steps = page.run("return live.boards[1].steps")
    assert steps[0]["set"] == [[0, 3]] and len(steps) == 3
    assert page.run("return live.boards[0].steps.map((s) => s.set)") == before
    assert "row 1 holds 4 twice" in page.text(".panel:nth-child(2) .said")
    # a click on a bar does the same
    page.run("location.hash = '#step=1&cell=1'")
    webdriver.wait(page, "return now.cell === 1 && now.step === 1")
    page.click(".panel:nth-child(2) button.bar:nth-of-type(6)")
    done("String(live.boards[1].steps[0]?.set) === '1,5'")
    assert page.run("return live.boards[1].steps[0].set") == [[1, 5]]
    # back to the start: take the digit away, by its button
    page.press("Home")
    page.run("location.hash = '#step=0&cell=3'")
    webdriver.wait(page, "return now.cell === 3 && now.step === 0")
    page.click(".panel:nth-child(1) .inspect button")
    done("live.start[3] === -1")
    assert page.run("return live.boards.map((b) => b.steps.length)") == [4, 4]
    page.run("live.latents[0].value = 2; live.latents[0].dispatchEvent(new Event('change'))")
    done("live.boards[0].steps[0]?.tokens === 36")
    assert page.text(".panel:nth-child(1) h2") == "scdm, n = 2, random"
    assert page.run("return live.boards.map((b) => b.steps[0].tokens)") == [36, 37]


@needs_browser
def test_a_step_takes_less_than_a_second(page):
    """(50 ms on one idle core; the bound leaves room for busy machines.)"""
    best = page.run("""
        const all = Array.from({ length: 37 }, (_, i) => i), took = [];
        for (let i = 0; i < 6; i++) {
          const began = performance.now();
          forward(live.model, [8, ...Array(36).fill(7)], all, all);
          took.push(performance.now() - began);
        }
        return Math.min(...took);""")
    print(f"a pass over 37 tokens: {best:.0f} ms")
    assert best < 1000


def test_what_is_made(made):
    """The page, live.js and the weights, whole; small sources."""
    page = made.read_text(encoding="utf-8")
    bare = (ROOT / "viewer/viewer.html").read_text(encoding="utf-8")
    assert 2_900_000 < len(page) < 3_200_000
    assert page.count("<script") == bare.count("<script") + 2
    for name in ("viewer.html", "live.js"):
        assert max(map(len, (ROOT / "viewer" / name).read_text().splitlines())) <= 100
    program = (ROOT / "viewer/live.js").read_text()
    assert program in page and "</script" not in program
    assert not any(word in program for word in ("innerHTML", "eval(", "fetch(", "http"))


def test_what_cannot_be_made(tiny_checkpoints, tmp_path, capsys):
    for name in ("mdm", "star"):
        argv = [str(tmp_path / "a.html"), "--ckpt", str(tiny_checkpoints[name])]
        assert run(make_live.main, argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "live.js runs scdm on sudoku-gen, not " in line
    assert run(make_live.main, [str(tmp_path / "b.html"), "--ckpt",
                                str(tiny_checkpoints["scdm"])]) == 0  # 4x4
    text = json.loads((tmp_path / "b.html").read_text().split('id="model">')[1].split("<")[0])
    assert (text["side"], text["box"], text["K"]) == (4, [2, 2], 4)
