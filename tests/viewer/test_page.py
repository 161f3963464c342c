"""The page in a real browser: every task, every way to move, what is saved, and hostile traces.

Skipped where there is no Chromium with its driver; `make viewer-test` installs them. With
SCREENSHOTS=FOLDER pictures of the page are left there, to be looked at.
"""
import base64
import copy
import json
import os
import re
import time
import xml.etree.ElementTree
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import webdriver

import sample
from conftest import PUZZLE, random_model, task_config
from data import make_task
from model import visible
from objectives import make_sampling_params
from plumbing.cli import run
from plumbing.trace import PLACE, embed, to_text, trace
from webdriver import wait

pytestmark = pytest.mark.skipif(webdriver.missing() is not None, reason=webdriver.missing() or "")

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "viewer/viewer.html"
SIX = ROOT / "results/demo-dial/scdm-seed0.pt"
NINE = ROOT / "results/sudoku9-cpu/mdm-seed0.pt"
EVIL = "<img src=x onerror='window.hacked=1'></script><script>window.hacked=1</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("viewer")


@pytest.fixture(scope="module")
def browser(folder):
    browser = webdriver.Browser(folder)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def traces(folder, tiny_checkpoints, data_dir):
    """{name: file} of traces: all tasks, both layouts, all objectives, with and without latents."""
    jobs = {"none": [SIX, "--latents", "0", "--seed", "2"], "all": [SIX, "--seed", "2"],
            "few": [SIX, "--order", "confidence", "--latents", "2"],
            "nine": [NINE, "--puzzle", PUZZLE], "prompt": [tiny_checkpoints["prompt9"]],
            "star": [tiny_checkpoints["star"], "--num", "2"], "ar": [tiny_checkpoints["ar"]],
            "mdm": [tiny_checkpoints["mdm"], "--num", "3"], "sidm": [tiny_checkpoints["sidm"]]}
    files = {}
    for name, (checkpoint, *argv) in jobs.items():
        files[name] = folder / f"{name}.json"
        argv = ["--ckpt", str(checkpoint), "--device", "cpu", *argv, "--json"]
        assert run(sample.main, [*argv, "--trace", str(files[name])]) == 0
    files["planning"] = folder / "planning.json"
    files["planning"].write_text(planning(data_dir))
    return files


def planning(data_dir):
    """A trace of an untrained model, as text."""
    task = make_task(task_config("planning", data_dir=data_dir))
    (start, references), history = task.test_set(2), []
    sampling = make_sampling_params("mtp", task)
    _, answers, stats = sample.evaluate(random_model(task), task, "mtp", sampling, start,
                                        references, 0, torch.device("cpu"), nullcontext(),
                                        history=history)
    about = {"objective": "mtp", "seconds": 1.0}
    return to_text(trace(task, start, references, history, answers, stats, about))


@pytest.fixture
def page(browser):
    """-> page(*files, hash, width): the page with these traces. No test leaves a word behind."""
    def page(*files, hash="", width=1280, height=900):
        browser.size(width, height)
        browser.open(f"{PAGE.as_uri()}{hash}")
        if files:
            browser.pick("#files", files)
            wait(browser, "return shelf.length > 0 || !document.getElementById('message').hidden")
        return browser

    browser.log()
    yield page
    assert browser.log() == []
    assert browser.run("return window.hacked === undefined")


def shot(browser, name):
    if os.environ.get("SCREENSHOTS"):
        browser.picture(Path(os.environ["SCREENSHOTS"]) / f"{name}.png")


SHOWN = """return [[...document.querySelectorAll('.cell')].map((g) => g.getAttribute('aria-label')),
    document.getElementById('where').innerText, document.querySelector('.counts').innerText]"""


def labels(browser, panel=0):
    """What a screen reader says about each cell."""
    return browser.run("return [...document.querySelectorAll('.panel')[arguments[0]]"
                       ".querySelectorAll('.cell')].map((g) => g.getAttribute('aria-label'))",
                       panel)


def replayed(found, b=0):
    """The boards of a trace after each step, and who was there."""
    one = found["samples"][b]
    board, boards = list(one["start"]), [list(one["start"])]
    for step in one["steps"]:
        for cell in step["undone"]:
            board[cell] = -1
        for cell, symbol in step["set"]:
            board[cell] = symbol
        boards.append(list(board))
    return one, boards


# -- what is shown --


@pytest.mark.parametrize("name", ["none", "all", "nine", "prompt", "star", "ar", "mdm", "sidm",
                                  "planning"])
def test_every_step_says_what_the_trace_says(page, traces, name):
    """Each cell's state and symbol or best guess, counts and mistakes, at every step."""
    found = json.loads(traces[name].read_text())
    one, boards = replayed(found)
    P, A, names = found["task"]["P"], found["task"]["A"], found["symbols"]
    browser = page(traces[name])
    nfe = tokens = 0
    for t, board in enumerate(boards):
        said, where, counts = browser.run(SHOWN)
        assert where == f"step {t} of {len(boards) - 1}"
        step = one["steps"][t - 1] if t else None
        predicted = iter(base64.b64decode(step["probs"]) if t else b"")
        guesses = {}
        for position, letter in enumerate(step["who"] if t else ""):
            if letter in "lcn":
                guesses[position - P] = [next(predicted) for _ in names]
        for cell in range(A):
            text = said[cell].split(": ", 1)[1]
            if board[cell] >= 0:
                fresh = t and board[cell] != boards[t - 1][cell]
                state = "committed now" if fresh else ("given" if one["given"][cell] >= 0
                                                       else "committed before")
                assert text.removesuffix(", wrong") == f"{state} {names[board[cell]]}"
            elif t == 0:
                assert text == "unknown"
            elif cell in guesses:
                kind = {"l": "latent", "c": "candidate", "n": "next"}[step["who"][P + cell]]
                best = names[guesses[cell].index(max(guesses[cell]))]
                assert text.startswith(kind) and f", most probable {best}, " in text
            else:
                assert text == "not in this pass"
        nfe, tokens = nfe + (t and step["passes"]), tokens + (t and step["tokens"])
        assert re.match(rf"{nfe:,} NFE *{tokens:,} tokens", counts)
        if t < len(boards) - 1:
            browser.press("ArrowRight")
    said = browser.text(".said")
    assert said == "✓ solved" if one["solved"] else one["mistakes"][0] in said
    assert (nfe, tokens) == (one["nfe"], one["tokens"])
    wrong = sum(text.endswith(", wrong") for text in labels(browser))
    assert (wrong == 0) == one["solved"]
    shot(browser, f"end-{name}")


@pytest.mark.parametrize("name", ["few", "all", "prompt", "star", "mdm"])
def test_a_cell_shows_its_distribution_and_whom_it_may_look_at(page, traces, name):
    """By mouse and by keyboard; who is looked at by the rule of model.visible."""
    found = json.loads(traces[name].read_text())
    (one, boards), P, K = replayed(found), found["task"]["P"], len(found["symbols"])
    t = len(boards) // 2
    step = one["steps"][t - 1]
    browser = page(traces[name], hash="#step=0")
    browser.run("location.hash = arguments[0]", f"#step={t}")
    wait(browser, f"return now.step === {t}")
    present = [p for p, letter in enumerate(step["who"]) if letter in "klc"]
    rank = torch.zeros(len(present)) if step["rank"] is None else torch.arange(1, len(present) + 1)
    rank = torch.tensor(step["rank"]) if isinstance(step["rank"], list) else rank
    matrix = visible(rank)
    asked = [p - P for p, letter in enumerate(step["who"]) if letter in "lcn" and p >= P]
    for cell in {asked[0], asked[-1]}:
        browser.hover(f'.cell[data-cell="{cell}"]')
        wait(browser, f"return now.cell === {cell}")
        q = [p for p, letter in enumerate(step["who"]) if letter in "lcn"].index(P + cell)
        probs = base64.b64decode(step["probs"])[q * K:(q + 1) * K]
        widths = browser.run("return [...document.querySelectorAll('.fill')]"
                             ".map((e) => parseFloat(e.style.width))")
        assert sorted(widths, reverse=True)[:K] == pytest.approx(
            sorted((p / 2.55 for p in probs), reverse=True)[:len(widths)], abs=0.01)
        if step["who"][P + cell] == "n":
            seen = set(present)  # all before it; its predecessor is "itself" there
        else:
            row = matrix[present.index(P + cell)]
            seen = {p for p, yes in zip(present, row.tolist()) if yes} - {P + cell}
        count = {letter: sum(step["who"][p] == letter and p >= P for p in seen) for letter in "klc"}
        words = [(sum(p < P for p in seen), "of the prompt"), (count["k"], "known"),
                 (count["l"], "latent"), (count["c"], "candidate")]
        expected = ", ".join(f"{n} {word}" for n, word in words if n)
        assert expected in browser.text(".inspect")
        green = browser.run("return [...document.querySelectorAll('.panel svg rect')].filter((r) =>"
                            " r.getAttribute('stroke') === ink.look).length")
        assert green == sum(count.values())
    # by keyboard: from the first cell to the one beside it
    browser.run("document.querySelector('.cell[data-cell=\"0\"]').focus()")
    browser.press("ArrowRight")
    assert browser.run("return now.cell") == 1 and browser.run("return now.step") == t
    browser.press("PageDown")
    assert browser.run("return [now.cell, now.step]") == [1, t + 1]
    assert browser.run("return document.activeElement.dataset.cell") == "1"
    browser.press("Escape")
    assert browser.run("return [now.cell, document.activeElement.id]") == [None, "slider"]


def test_n_0_and_n_all_look_different_at_once(page, traces):
    """Side by side, in step: who is absent in one is a latent in the other."""
    browser = page(traces["none"], traces["all"])
    wait(browser, "return shelf.length === 2")
    browser.run("location.hash = '#step=9'")
    wait(browser, "return now.step === 9")
    none, everybody = labels(browser, 0), labels(browser, 1)
    assert sum("not in this pass" in text for text in none) == 27
    assert sum("latent" in text for text in everybody) == 27
    assert sum("not in this pass" in text for text in everybody) == 0
    shot(browser, "compare")
    browser.click("#shelf button:first-child")  # hide the first
    assert browser.run("return document.querySelectorAll('.panel').length") == 1
    assert len(set(labels(browser, 0)) & set(everybody)) == 36


def test_maps(page, traces):
    """Entropy, and when each cell was first right, against numbers from the trace."""
    found = json.loads(traces["all"].read_text())
    one, boards = replayed(found)
    browser = page(traces["all"], hash="#map=entropy&step=1")
    browser.run("location.hash = '#map=entropy&step=3'")
    wait(browser, "return now.step === 3")
    step = one["steps"][2]
    shown = browser.run("return [...document.querySelectorAll('.cell')].map((g) => g.textContent)")
    entropy = iter(base64.b64decode(step["entropy"]))
    for cell in range(36):
        if step["who"][1 + cell] in "lc":
            assert shown[cell] == f"{next(entropy) / 255:.2f}"
    shot(browser, "entropy")
    browser.click("#map-right")
    browser.press("End")
    shown = browser.run("return [...document.querySelectorAll('.cell')].map((g) => g.textContent)")
    for cell in range(36):
        first = None
        for t, (step, board) in enumerate(zip(one["steps"], boards[1:]), 1):
            at = [p for p, letter in enumerate(step["who"]) if letter in "lc"]
            best = board[cell]
            if 1 + cell in at:
                q = at.index(1 + cell)
                probs = list(base64.b64decode(step["probs"])[6 * q:6 * q + 6])
                best = probs.index(max(probs))
            if boards[-1][cell] in (best, board[cell]):
                first = t
                break
        assert shown[cell] == str(first)
    shot(browser, "first-right")


def test_a_decoder_that_undoes_is_shown(page, traces, folder):
    found = json.loads(traces["mdm"].read_text())
    steps = found["samples"][0]["steps"]
    cell, symbol = steps[0]["set"][0]
    steps[1]["undone"] = [cell]
    (folder / "undo.json").write_text(json.dumps(found))
    browser = page(folder / "undo.json")
    browser.run("location.hash = '#step=2'")
    wait(browser, "return now.step === 2")
    assert labels(browser)[cell].endswith(": taken back now")
    assert "taken back now" in browser.text("#legend")
    assert browser.text(f'.cell[data-cell="{cell}"]') == found["symbols"][symbol]


# -- moving --


def test_moving(page, traces):
    """Buttons, keys, slider, play; and the address holds all of it."""
    browser = page(traces["all"])
    assert "taken back" not in browser.text("#legend")  # only where something is
    for key, step in (("End", 36), ("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2),
                      ("ArrowLeft", 1), ("PageDown", 2), ("PageUp", 1)):
        browser.press(key)
        assert browser.text("#where") == f"step {step} of 36"
    for button, step in (("#last", 36), ("#back", 35), ("#first", 0), ("#on", 1)):
        browser.click(button)
        assert browser.text("#where") == f"step {step} of 36"
    browser.run("document.activeElement.blur(); document.getElementById('speed').value = '20'")
    browser.press("Space")
    assert browser.text("#play") == "Pause"
    wait(browser, "return now.step > 4")
    browser.press("Space")
    stopped = browser.run("return now.step")
    time.sleep(0.2)
    assert browser.run("return now.step") == stopped and browser.text("#play") == "Play"
    browser.press("End", "Space")
    wait(browser, "return now.step === 36 && now.timer === null")  # from the start, to the end
    browser.run("document.getElementById('slider').focus()")
    browser.press("ArrowLeft", "ArrowLeft")  # the slider's own keys: one step each
    assert browser.run("return now.step") == 34


def test_the_address_brings_back_what_was_seen(page, traces, folder):
    made = embed(traces["mdm"].read_text(), PLACE)
    (folder / "made.html").write_text(made, encoding="utf-8")
    browser = page()
    browser.open((folder / "made.html").as_uri())
    assert browser.run("return shelf.length") == 3 and browser.text("#where") == "step 0 of 16"
    browser.click("#shelf button:nth-child(3)")
    browser.click("#map-entropy")
    browser.press("ArrowRight", "ArrowRight")
    browser.hover('.panel:nth-child(2) .cell[data-cell="5"]')
    browser.click("#theme")
    address = browser.run("return location.href")
    words = address.partition("#")[2].split("&")
    assert words[:4] == ["step=2", "cell=5", "map=entropy", "show=0,2"]
    before = browser.run("return document.getElementById('panels').textContent")
    browser.open(address)
    assert browser.run("return document.getElementById('panels').textContent") == before
    assert browser.run("return location.href") == address
    for odd in ("#step=-1", "#step=1e9", "#%%%", "#step=<script>",
                "#step=999999&cell=77777&show=9,9,x&map=%00&theme=__proto__"):
        browser.run("location.hash = arguments[0]", odd)
        time.sleep(0.05)
        assert 0 <= browser.run("return now.step") <= 16
        assert browser.text("#where").endswith("of 16")


def test_a_page_that_holds_a_trace_can_be_opened_again(page, traces, folder):
    (folder / "held.html").write_text(embed(traces["none"].read_text(), PLACE), encoding="utf-8")
    browser = page(folder / "held.html")
    assert browser.text("#where") == "step 0 of 36"


DROP = """
const data = new DataTransfer();
for (const [text, name] of arguments[0]) data.items.add(new File([text], name));
document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true,
                                                    cancelable: true }));
"""


def test_files_are_dropped(page, traces):
    """Traces, pages that hold one, pages that hold none, and what is too large to look at."""
    browser, text = page(), traces["none"].read_text()
    browser.run(DROP, [[text, "a.json"], [embed(text, PLACE), "b.html"]])
    wait(browser, "return shelf.length === 2")
    assert browser.text("#shelf").split("\n")[0].endswith(" · a.json")
    for dropped, words in (("<html></html>", "c.html is no JSON"),
                           ("x" * 20_000_001, "c.html is larger than 20 MB")):
        browser.run(DROP, [[dropped, "c.html"]])
        wait(browser, "return !document.getElementById('message').hidden")
        wait(browser, f"return document.getElementById('message').textContent.includes('{words}')")
    assert browser.run("return shelf.length") == 2


# -- looks --


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_it_fits(page, traces, width, scheme):
    """No sideways scrolling, controls in reach, both schemes as the system asks for them."""
    browser = page()
    browser.prefer(scheme)
    browser = page(traces["nine"], traces["all"], traces["star"], traces["planning"], width=width)
    wait(browser, "return shelf.length === 6")
    browser.run("location.hash = '#step=4&cell=3&show=0,1,2,4'")
    wait(browser, "return document.querySelectorAll('.panel').length === 4")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return ink === PALETTES[arguments[0]]", scheme)
    for control in ("#play", "#slider", "#map-right", "#files + *, label[for=files]"):
        box = browser.run("const b = document.querySelector(arguments[0]).getBoundingClientRect();"
                          "return [b.left, b.right, b.width]", control)
        assert 0 <= box[0] < box[1] <= width and box[2] >= 20, control
    smallest = browser.run("return document.querySelector('.cell').getBoundingClientRect().width")
    assert smallest >= 28
    tall = browser.run("return document.documentElement.scrollHeight")
    browser.size(width, min(tall, 5000))
    shot(browser, f"fits-{width}-{scheme}")
    browser.prefer("light")


def luminance(color):
    parts = [int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast(page):
    """WCAG AA: 4.5 for text, 3 for what else must be seen, in both schemes and on the scale."""
    browser = page()
    for ink in browser.run("return PALETTES").values():
        text = [("ink", "paper"), ("ink", "page"), ("ink", "given"), ("muted", "paper"),
                ("muted", "page"), ("before", "paper"), ("nowink", "now"), ("wrong", "wrongfill"),
                ("wrong", "paper"), ("before", "given")]
        assert all(contrast(ink[a], ink[b]) >= 4.5 for a, b in text), ink
        lines = [("edge", "paper"), ("edge", "page"), ("look", "paper"), ("nowedge", "paper"),
                 ("nowedge", "now"), ("look", "given"), ("look", "wrongfill")]
        assert all(contrast(ink[a], ink[b]) >= 3 for a, b in lines), ink
    for i in range(101):
        made = browser.run("return heat(arguments[0] / 100)", i)
        numbers = map(int, re.findall(r"\d+", made["fill"]))
        fill = "#" + "".join(f"{n:02x}" for n in numbers)
        assert contrast(fill, made["on"]) >= 4.5, i


# -- saving --


def test_what_is_saved(page, traces, folder):
    """The shown step as SVG and PNG, with the colours that are seen."""
    browser = page(traces["none"], traces["star"])
    wait(browser, "return shelf.length === 3")
    browser.press("ArrowRight", "ArrowRight")
    browser.click("#svg")
    browser.click("#png")
    for _ in range(200):
        files = [folder / f"step-2.{kind}" for kind in ("svg", "png")]
        if all(f.exists() and f.stat().st_size for f in files):
            break
        time.sleep(0.05)
    root = xml.etree.ElementTree.fromstring(files[0].read_text(encoding="utf-8"))
    words = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    found = json.loads(traces["none"].read_text())
    for step in found["samples"][0]["steps"][:2]:
        assert found["symbols"][step["set"][0][1]] in words
    assert "scdm, n = 0, random" in words and "step 2 · 2 NFE · 5 tokens" in words
    assert "start" in words and "goal" in words
    text = files[0].read_text(encoding="utf-8")
    assert "var(" not in text and "<script" not in text and "style=" not in text
    data = files[1].read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(data[i:i + 4], "big") for i in (16, 20))
    assert width == 2 * float(root.get("width")) and abs(height - 2 * float(root.get("height"))) < 2
    assert len(data) > 20_000  # something is drawn


# -- hostile traces --


def spoil(found, path, value):
    spoilt = copy.deepcopy(found)
    at = spoilt
    for key in path[:-1]:
        at = at[key]
    if value is None and isinstance(path[-1], str):
        at.pop(path[-1])
    else:
        at[path[-1]] = value
    return spoilt


STEP = ("samples", 0, "steps", 0)
HOSTILE = [
    (("format",), EVIL, "is no trace of sample.py"),
    (("version",), 2, "has version 2; this page reads version 1"),
    (("version",), EVIL, "has version"),
    (("task",), None, "task is missing"),
    (("task", "kind"), EVIL, "task.kind is neither board nor path"),
    (("task", "A"), 10**9, "task.A is no whole number"),
    (("task", "A"), 15, "task.side does not fit task.A"),
    (("task", "box"), [0, 0], "task.box does not fit"),
    (("symbols",), ["1"] * 600, "symbols is no list of at most 512"),
    (("symbols", 0), {}, "symbols[0] is no text"),
    (("about",), [], "about is missing"),
    (("about", "objective"), {"a": EVIL}, "about.objective is neither text nor number"),
    (("samples",), [], "samples is empty"),
    (("samples",), {"length": 10**9}, "samples is no list"),
    (("samples",), [None], "samples[0] is no sample"),
    (("samples", 0, "start"), [-1] * 15, "samples[0].start has not 16 cells"),
    (("samples", 0, "start", 3), 4, "samples[0].start[3] is no symbol"),
    (("samples", 0, "given", 3), 0.5, "samples[0].given[3] is no symbol"),
    (("samples", 0, "prompt"), 7, "samples[0].prompt is no text"),
    (("samples", 0, "solved"), "yes", "samples[0].solved is neither true nor false"),
    (("samples", 0, "nfe"), -1, "samples[0].nfe is no whole number"),
    (("samples", 0, "mistakes"), "many", "samples[0].mistakes is no list"),
    (("samples", 0, "steps"), [{}] * 5000, "samples[0].steps is no list of at most 4096"),
    (("samples", 0, "steps"), [7], "samples[0].steps[0] is no step"),
    ((*STEP, "who"), "k" * 16, ".who is not 17 of the letters"),
    ((*STEP, "who"), "x" * 17, ".who is not 17 of the letters"),
    ((*STEP, "rank"), [0] * 3, ".rank does not fit who"),
    ((*STEP, "rank"), ["0"] * 17, ".rank does not fit who"),
    ((*STEP, "probs"), "", ".probs has another length"),
    ((*STEP, "probs"), "%" * 88, ".probs is no base64"),
    ((*STEP, "entropy"), None, ".entropy has another length"),
    ((*STEP, "set"), [[16, 0]], ".set[0] is no whole number from 0 to 15"),
    ((*STEP, "set"), [[0, 4]], ".set[0] is no whole number from 0 to 3"),
    ((*STEP, "set"), [[0]], ".set[0] is no pair"),
    ((*STEP, "undone"), [-1], ".undone[0] is no whole number"),
    ((*STEP, "tokens"), 10**12, ".tokens is no whole number"),
    ((*STEP, "passes"), "2", ".passes is no whole number"),
    ((*STEP, "seconds"), -1, ".seconds is no time"),
    ((*STEP, "mistakes"), [{}], ".mistakes[0] is no text"),
]


def offer(browser, text, name="evil.json"):
    """Give text to the page as if it were a file that was dropped."""
    return browser.run("const got = load(arguments[0], arguments[1]); const m = "
                       "document.getElementById('message'); return [got !== null, m.hidden ? '' :"
                       " m.textContent]", text, name)


def test_malformed_traces_show_one_clear_line(page, traces):
    """Each field wrong in its way; what was shown before stays."""
    found = json.loads(traces["mdm"].read_text())
    browser = page(traces["all"])
    for path, value, words in HOSTILE:
        loaded, message = offer(browser, json.dumps(spoil(found, path, value)))
        assert not loaded and message.startswith("evil.json ") and words in message, (path, message)
        assert "\n" not in message and len(message) < 250
    text = traces["mdm"].read_text()
    for odd in ("", "{", "null", "7", "[]", '"x"', text[:-200], "[" * 100_000,
                text.replace("1", "NaN")):
        loaded, message = offer(browser, odd)
        assert not loaded and "evil.json is no " in message
    assert browser.run("return shelf.length") == 1 and browser.text("#where") == "step 0 of 36"
    assert offer(browser, traces["mdm"].read_text()) == [True, ""]


def test_graphs_that_are_none(page, traces):
    found = json.loads(traces["star"].read_text())
    browser = page()
    for path, value, words in [
            (("task", "walk"), [], "task.walk is empty"),
            (("task", "walk", 0), [0, 99], "task.walk[0][1] is no whole number from 0 to 2"),
            (("samples", 0, "edges"), [[0, 1, 2]], "samples[0].edges[0] is no list of at most 2"),
            (("samples", 0, "edges"), [[0, 99]], "samples[0].edges[0][1] is no whole number"),
            (("samples", 0, "ends"), [0], "samples[0].ends is no pair")]:
        loaded, message = offer(browser, json.dumps(spoil(found, path, value)))
        assert not loaded and words in message, message
    for edges in ([], [[0, 0]], [[0, 1], [1, 2], [2, 0]], [[a, b] for a in range(9)
                                                          for b in range(9)]):
        loaded, message = offer(browser, json.dumps(spoil(found, ("samples", 0, "edges"), edges)))
        assert loaded and not message  # odd, but a graph: cycles do no harm
        browser.press("End")


def test_nothing_in_a_trace_runs(page, traces, folder):
    """Scripts in every text there is, in a file's name and in a page made by embed()."""
    found = json.loads(traces["star"].read_text())
    found["task"]["name"] = EVIL[:40]
    found["symbols"] = [EVIL[:12]] * len(found["symbols"])
    found["about"] = {"objective": EVIL, "order": EVIL, "latents": EVIL, "decoder": EVIL,
                      "__proto__": {"hacked": 1}, EVIL: EVIL}
    for one in found["samples"]:
        one["prompt"], one["mistakes"], one["solved"] = EVIL, [EVIL, "javascript:hacked=1"], False
        one["steps"][0]["mistakes"] = [EVIL]
    text = json.dumps(found)
    (folder / "evil.html").write_text(embed(text, PLACE), encoding="utf-8")
    browser = page()
    assert offer(browser, text, EVIL) == [True, ""]
    browser.press("ArrowRight")
    assert EVIL[:20] in browser.text(".said")
    browser.press("End")
    browser.hover('.cell[data-cell="1"]')
    assert browser.run("return document.querySelectorAll('img, script[src], a').length") == 0
    assert browser.run("return document.querySelectorAll('script').length") == 2
    assert browser.run("return {}.hacked === undefined")
    browser.open((folder / "evil.html").as_uri())
    assert browser.run("return [shelf.length, window.hacked === undefined]") == [2, True]
    loaded, message = offer(browser, "{", EVIL + "\x1b\u202e\n")
    assert not loaded and message.startswith("<img src=x") and message.isprintable()


def test_the_policy_stops_what_would_slip_through(browser):
    """Were markup ever to reach the page, no handler in it could run, and nothing be fetched."""
    browser.open(PAGE.as_uri())
    browser.log()
    browser.run("document.body.insertAdjacentHTML('beforeend', arguments[0])",
                "<img src='data:,' onerror='window.hacked=1'>"
                "<a id=x href='javascript:window.hacked=1'>x")
    browser.run("document.getElementById('x').click(); document.body.append(Object.assign("
                "document.createElement('script'), {textContent: 'window.hacked = 1'}))")
    time.sleep(0.2)
    assert browser.run("return window.hacked === undefined")
    asked = browser.run("return fetch('data:,x').then(() => 'came', () => 'refused')")
    assert asked == "refused"
    assert any("Content Security Policy" in line for line in browser.log())


FUZZ = """
const found = JSON.parse(arguments[0]), seed = arguments[1], odd = [null, -1, 1e9, 0.5, "", "x", [],
  {}, true, [[]], "<b>", 1e308, -0, "AAAA", [1, 2, 3]];
let state = seed, kept = 0, left = [];
const draw = (n) => (state = (state * 48271) % 2147483647) % n;
for (let i = 0; i < 300; i++) {
  const copy = structuredClone(found);
  for (let k = 1 + draw(2); k > 0; k--) {
    let at = copy;
    for (;;) {
      const keys = Object.keys(at), key = keys[draw(keys.length)];
      const inside = at[key] !== null && typeof at[key] === "object" && Object.keys(at[key]).length;
      if (inside && draw(8)) {
        at = at[key];
      } else {
        if (draw(4)) at[key] = odd[draw(odd.length)];
        else delete at[key];
        break;
      }
    }
  }
  try {
    const samples = read(JSON.stringify(copy), "fuzz");
    kept++;
    for (const sample of samples.slice(0, 1)) {
      const panel = panelOf(sample);
      now.cell = draw(20);
      for (now.step = 0; now.step < sample.steps.length; now.step++) panel.update();
    }
  } catch (e) {
    if (!(e instanceof Unfit)) left.push(String(e.stack).slice(0, 300));
  }
}
now.step = 0;
return [kept, left.slice(0, 3)];
"""


@pytest.mark.parametrize("name", ["mdm", "star", "ar"])
def test_fuzz(page, traces, name):
    """Spoilt at random, a trace is refused with a line of ours or can be shown in full."""
    browser = page()
    kept, left = browser.run(FUZZ, traces[name].read_text(), 7)
    assert left == [] and 0 < kept < 250


def test_the_page_is_small_and_asks_nobody():
    text = PAGE.read_text(encoding="utf-8")
    assert PAGE.stat().st_size <= 60_000
    assert max(map(len, text.splitlines())) <= 100
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                 "fetch(", "XMLHttpRequest", "WebSocket", "import(", "https://"):
        assert word not in text, word
    assert re.findall(r"http://[^\"']+", text).count("http://www.w3.org/2000/svg") == \
        len(re.findall("http://", text))
