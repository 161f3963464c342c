"""plumbing/report.py: what the pages say is what results/ holds, and a damaged file is one line."""
import itertools
import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

import reproduce
from config import BEFORE, MEANS_SOMETHING_FOR, Config
from data import make_task
from metrics import wilson
from objectives import make_dials, show_count
from plumbing import figures, report
from plumbing.cli import BadInput, run

ROOT = Path(__file__).parent.parent.parent
RESULT = "demo/mtp-all-seed0.json"


@pytest.fixture(scope="module")
def found():
    return report.load_results(ROOT / "results", reproduce.order())


@pytest.fixture
def copy(tmp_path):
    """A results folder of one result and one benchmark, to be damaged."""
    (tmp_path / "demo").mkdir()
    for name in (RESULT, "demo/mtp-all-seed0.csv", "bench-scale.json"):
        shutil.copyfile(ROOT / "results" / name, tmp_path / name)
    return tmp_path


def change(file, path, value):
    """Set the value at path, ("rows", 0, "num"), of a json file; ... deletes it."""
    loaded = json.loads(file.read_text(encoding="utf-8"))
    part = loaded
    for key in path[:-1]:
        part = part[key]
    if value is ...:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    file.write_text(json.dumps(loaded), encoding="utf-8")


# --------------------------------------------------------------------------------------------------
# What the pages say


@pytest.mark.parametrize("page", reproduce.PAGES)
def test_pages_are_the_results(page):
    """Fails when a page and results/ differ; mend with: python reproduce.py --table --write"""
    texts = report.tables(ROOT / "results", reproduce.order())
    texts["board"] = reproduce.example_board(ROOT / "results")
    text = (ROOT / page).read_text(encoding="utf-8")
    parts = {name: texts[name] for name in reproduce.PAGES[page]}
    assert report.update_page(text, parts, page) == text


def test_results_are_consistent():
    """In every json: rate and interval follow from the counts, and the log lies beside it."""
    files = list((ROOT / "results").glob("*/*.json"))
    assert files
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        assert result["preset"] == file.parent.name
        assert file.name == f"{result['name']}-seed{result['seed']}.json"
        for row in result["rows"]:
            assert row["solved"] <= row["num"]
            assert row["solved_rate"] == row["solved"] / row["num"]
            assert tuple(row["interval"]) == wilson(row["solved"], row["num"])
        if result["training"]:
            log = file.with_suffix(".csv").read_text(encoding="utf-8")
            last = log.splitlines()[-1].split(",")
            assert result["training"]["steps"] == int(last[0])
            assert result["training"]["seconds"] == float(last[1])


def test_results_are_what_the_presets_make(found):
    """Each result has the config of its run, and each row is one that the run's grid asks for."""
    def dials_of(row):
        return (row["latents"], row.get("order"), row.get("tokens_per_step", 1), row.get("test"),
                row.get("restarts", 0), row.get("candidates"))

    for preset, results in found.items():
        runs = {r.name: r for r in reproduce.FINDINGS[preset]}
        for result in results:
            had = {**BEFORE, **result["config"]}
            run, config = runs[result["name"]], Config(**had)
            free = {"max_steps"} if run.steps_of else set()  # as many as another run's
            free |= {field for field, (what, values) in MEANS_SOMETHING_FOR.items()
                     if getattr(config, what) not in values}  # that it does not read
            for field in set(run.config) - free:
                assert had[field] == run.config[field], (preset, run.name, field)
            if "decoder" in result["rows"][0]:
                continue
            task, legal = make_task(config), []
            for asked in run.grid:
                of_test = {k: asked[k] for k in ("test", "restarts") if k in asked}
                asked = {k: v for k, v in asked.items() if k not in of_test}
                dials = make_dials(config.objective, task, config.window, **asked)
                candidates = show_count(dials.candidates, task) if of_test else None
                legal.append(dials_of({**vars(dials), **of_test, "candidates": candidates,
                                       "latents": show_count(dials.latents, task)}))
            assert {dials_of(row) for row in result["rows"]} <= set(legal), (preset, run.name)


def test_puzzles_are_compared_at_equal_candidates(found):
    """By default sidm takes the surest of 8 cells and mdm of all: such rows are no pair."""
    pairs = report.gaps(report.pooled(found["sudoku9"]))
    assert pairs and all(a["candidates"] == b["candidates"] for _, _, a, b in pairs)
    line = ("| `sudoku9` | mdm | confidence | all | all | 96.4 (95.7-97.0; seeds 96 97 97) | "
            "100.0 (99.9-100.0; seeds 100 100 100) | 81.1 (80.2-82.0; seeds 81 82 80) | ")
    assert line in report.puzzles(found)


def test_puzzles_with_several_cells_a_pass(found):
    """Added up from the files themselves; a way that a run was not decoded in is a dash."""
    lines = report.several_cells(found).splitlines()
    assert lines[0] == ("| preset | run | candidates | latents | 1 a pass | 2 a pass | 4 a pass "
                        "| 8 a pass | 4 restarts | 16 restarts |")
    ways = [(k, 0) for k in (1, 2, 4, 8)] + [(1, 4), (1, 16)]
    for name, candidates in (("mdm", "all"), ("mtp-all", "the next")):
        (line,) = (x for x in lines if x.startswith(f"| `sudoku9` | {name} | {candidates} | all |"))
        for cell, way in zip(line.split("|")[5:11], ways, strict=True):
            expected = []
            for test in ("own", "radcliffe_mixed_2500.txt"):
                rows = [row for result in found["sudoku9"] if result["name"] == name
                        for row in result["rows"] if row["test"] == test
                        and row["order"] in ("confidence", "left_to_right")
                        and (row["tokens_per_step"], row["restarts"]) == way]
                solved, num = sum(r["solved"] for r in rows), sum(r["num"] for r in rows)
                expected += [f"{100 * solved / num:.1f}"] if rows else []
            assert cell.strip() == (" / ".join(expected) or "-")


def test_trained_blocks_are_what_was_printed(tmp_path):
    """Of every size both orders (blocks of one cell: one), rate and interval as counted."""
    file = ROOT / "results" / "decoders" / "trained-blocks-seed0.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = [(line["size"], line["order"]) for line in lines]
    orders = ("random", "left_to_right")
    assert found == [(1, "random"), *itertools.product((3, 9, 27, 81), orders)]
    for line in lines:
        assert line["trained_sizes"] == [line["size"]] and line["params"] == lines[0]["params"]
        assert tuple(line["interval"]) == wilson(line["solved"], line["num"])
    mixed = tmp_path / "lines.jsonl"
    mixed.write_text("\n".join(map(json.dumps, reversed(lines))), encoding="utf-8")
    assert report.trained_blocks(mixed) == report.trained_blocks(file)
    rows = report.trained_blocks(file).splitlines()[2:]
    for row, size in zip(rows, (1, 3, 9, 27, 81), strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        of_size = [line for line in lines if line["size"] == size]
        assert cells[0] == str(size) and cells[1] == ("0" if size == 1 else f"0 to {size - 1}")
        for cell, line in zip(cells[2:4], (of_size[0], of_size[-1])):
            assert cell.startswith(f"{100 * line['solved'] / line['num']:.1f} (")


def rates(preset, name, row=0):
    """solved_rate of each seed, read from the files anew."""
    files = sorted((ROOT / "results" / preset).glob(f"{name}-seed*.json"))
    return [json.loads(f.read_text(encoding="utf-8"))["rows"][row]["solved_rate"] for f in files]


def test_results_are_of_the_present_recipes():
    """The config in each file is the one that its command would train today."""
    outdated = set()
    for preset, runs in reproduce.FINDINGS.items():
        for r in (r for r in runs if not r.shipped):
            asked = Config(**r.config)
            names = [f.name for f in fields(Config) if f.name not in ("seed", "out", "data_dir")
                     and not (f.name == "max_steps" and r.steps_of)]
            for name, (field, values) in MEANS_SOMETHING_FOR.items():
                if getattr(asked, field) not in values:
                    names.remove(name)
            for file in (reproduce.HERE / "results" / preset).glob(f"{r.name}-seed*.json"):
                config = {**BEFORE, **json.loads(file.read_text(encoding="utf-8"))["config"]}
                if any(config[name] != getattr(asked, name) for name in names):
                    outdated.add(f"{preset}/{r.name}")
    assert not outdated


def test_rows_of_the_first_page(found):
    """Five rows: mean, lowest and highest seed of what each of them names, without and with."""
    lines = report.rows(found).splitlines()
    assert lines[0] == "| without latents | with all | what is compared |" and len(lines) == 7
    sides = [(rates("sudoku9-gen", "sidm"), rates("sudoku9-gen", "mdm")),
             (rates("sudoku9-gen", "scdm", 0), rates("sudoku9-gen", "scdm", -1)),
             (rates("sudoku9-gen", "mtp-1"), rates("sudoku9-gen", "mtp-all")),
             (rates("star", "mtp-1-d5"), rates("star", "mtp-all-d5")),
             (rates("sudoku9", "sidm", 2), rates("sudoku9", "mdm", 2))]
    presets = ("sudoku9-gen",) * 3 + ("star", "sudoku9")
    for line, seeds, preset in zip(lines[2:], sides, presets, strict=True):
        cells = line.strip("| ").split(" | ")
        for cell, side in zip(cells, seeds):
            mean, low, high = 100 * sum(side) / len(side), 100 * min(side), 100 * max(side)
            digits = 1 if low > 99 else 0
            assert cell == f"{mean:.1f} % ({low:.{digits}f}-{high:.{digits}f})"
        counts = " or ".join(map(str, sorted({len(side) for side in seeds})))
        assert f"`{preset}`, {counts} seeds" in cells[2]
    assert lines[2].startswith("| 5.7 % (5-6) | 84.6 % (82-86) |")
    assert "G(5,5)" in lines[5]
    assert report.rows({"star": found["star"]}).splitlines()[2:] == lines[5:6]  # what is there


def test_seeds_are_added_up_by_run_and_dial():
    """A seed that was dialled otherwise makes rows of its own; counts are never mixed."""
    def result(seed, *dial):
        rows = [{"objective": "scdm", "trained_window": None, "latents": n, "num": 10, "solved": k,
                 "solved_rate": k / 10, "nfe": 36, "tokens": 702, "seconds": 1.0} for n, k in dial]
        return {"name": "scdm", "seed": seed, "training": None, "params": 1, "rows": rows,
                "config": {"task": "sudoku-gen", "board_size": 6}, "machine": {"device": "cpu"}}
    pooled = report.pooled([result(0, (0, 1), (8, 5)), result(1, (0, 3), ("all", 9))])
    assert [(r["latents"], r["solved"], r["num"], r["seeds"]) for r in pooled] == [
        (0, 4, 20, 2), (8, 5, 10, 1), ("all", 9, 10, 1)]
    assert pooled[0]["rates"] == [0.1, 0.3] and pooled[0]["interval"] == wilson(4, 20)


def test_planning_distances_may_differ_between_rows():
    """A distance that no sample of a row had is a dash in its own column."""
    def row(objective, counts):
        return {"objective": objective, "window": None, "by_distance": counts}
    text = report.distance_rows([row("ar", {"0": (1, 2), "2": (3, 4)}), row("mdm", {"1": (0, 0)})])
    assert text == ["| objective | 0 | 1 | 2 |", "|---|---|---|---|",
                    "| ar | 50 (1/2) | - | 75 (3/4) |", "| mdm | - | - | - |"]


def test_a_board_and_its_conflicts():
    """Digits that stand twice in a row, column or box are in brackets; unknown cells are dots."""
    cells = [0, 1, 4, 4, 0, 4, 4, 4, 4, 4, 2, 4, 4, 4, 3, 4]
    lines, wrong = report.board_lines(cells, 4)
    assert lines == ["[1] 2 | .  . ", "[1] . | .  . ", "------+------", " .  . | 3  . ",
                     " .  . | 4  . "]
    assert wrong == 2
    assert report.board_lines([4] * 16, 4)[1] == 0
    lines, wrong = report.board_lines([0, 4, 4, 4, 4, 4, 4, 0, 4, 0, 4, 4, 4, 4, 4, 4], 4)
    assert wrong == 0 and "[" not in "".join(lines)


# --------------------------------------------------------------------------------------------------
# Pages

TWO = ("a\n<!-- one: python reproduce.py --table -->\nold\n<!-- end of one -->\nb\n"
       "<!-- board: python reproduce.py --boards -->\n<!-- end of board -->\nc\n")


def test_parts_are_put_between_their_markers():
    page = report.update_page(TWO, {"one": "new", "board": "12\n21"}, "P.md")
    new = TWO.replace("old", "new")
    assert page == new.replace("<!-- end of board", "12\n21\n<!-- end of board")
    assert report.update_page(page, {"one": "new", "board": "12\n21"}, "P.md") == page


@pytest.mark.parametrize("page, words", [
    (TWO.replace("<!-- one: python reproduce.py --table -->\n", ""), "one.* nowhere"),
    (TWO.replace("<!-- end of one -->\n", ""), "end of one --> nowhere"),
    (TWO + "<!-- end of one -->", "end of one --> twice"),
    (TWO.replace("a\n", "<!-- one: python reproduce.py --table -->\n"), "one.* twice"),
    ("<!-- end of one -->\n" + TWO.replace("<!-- end of one -->\n", ""), "end of one --> before"),
    ("", "nowhere"), (b"\xff\xfe", "not UTF-8"), (None, "cannot read")])
def test_a_page_with_wrong_markers_is_refused_and_nothing_is_written(page, words, tmp_path):
    good, bad = tmp_path / "A.md", tmp_path / "B.md"
    good.write_text(TWO)
    if page is not None:
        bad.write_bytes(page if isinstance(page, bytes) else page.encode())
    pages, texts = {"A.md": ("one", "board"), "B.md": ("one",)}, {"one": "new", "board": "12"}
    with pytest.raises(BadInput, match=words) as refused:
        report.write_pages(pages, texts, tmp_path)
    said = str(refused.value)
    assert "B.md" in said and "\n" not in said and good.read_text() == TWO
    assert page is None or bad.read_bytes() == (page if isinstance(page, bytes) else page.encode())


# --------------------------------------------------------------------------------------------------
# Files that are damaged


@pytest.mark.parametrize("path, value, words", [
    (("rows", 0, "num"), ..., "rows[0].num is missing"),
    (("rows", 0, "num"), 0, "rows[0].num is 0"),
    (("rows", 0, "solved"), 5000, "rows[0].solved is 5000, more than num"),
    (("rows", 0, "solved"), -1, "rows[0].solved is -1"),
    (("rows", 0, "solved"), True, "rows[0].solved is True"),
    (("rows", 0, "solved_rate"), 0.5, "rows[0].solved_rate"),
    (("rows", 0, "seconds"), float("nan"), "rows[0].seconds is nan"),
    (("rows", 0, "tokens"), float("inf"), "rows[0].tokens is inf"),
    (("rows", 0, "latents"), "most", "rows[0].latents"),
    (("rows", 0, "trained_window"), "-1", "rows[0].trained_window"),
    (("rows", 0, "objective"), None, "rows[0].objective"),
    (("rows", 0, "order"), [], "rows[0].order is []"),
    (("rows", 0, "candidates"), {}, "rows[0].candidates is {}"),
    (("rows", 0, "tokens_per_step"), 0, "rows[0].tokens_per_step is 0"),
    (("rows", 0, "test"), None, "rows[0].test is None"),
    (("rows", 0, "restarts"), -1, "rows[0].restarts is -1"),
    (("rows", 0, "by_distance"), {"0": [3, 2]}, "rows[0].by_distance"),
    (("rows", 0, "by_distance"), {"far": [1, 2]}, "rows[0].by_distance"),
    (("rows", 0), [], "rows is"), (("rows",), [], "rows is []"), (("rows",), 3, "rows is 3"),
    (("params",), "many", "params is 'many'"), (("wall_seconds",), None, "wall_seconds is None"),
    (("training",), ..., "training is missing"), (("training",), [], "training is []"),
    (("training", "steps"), 1.5, "training.steps"),
    (("training", "peak_memory_gb"), "1", "training.peak_memory_gb"),
    (("machine",), "cpu", "machine is 'cpu'"),
    (("machine", "threads"), ..., "machine.threads is missing"),
    (("config", "task"), "chess", "config.task"), (("config", "arms"), ..., "config.arms is miss"),
    (("config", "task"), ["star"], "config.task"),
    (("seed",), 7, "name is 'mtp-all', and seed 7"), (("preset",), "star", "preset is 'star'"),
    (("name",), "x\x1b[31m", r"name is 'x\\x1b[31m'")])
def test_a_result_that_cannot_be_is_one_line(copy, path, value, words, capsys):
    """--table, which reads it, names file and field and exits with 2."""
    change(copy / RESULT, path, value)
    assert run(reproduce.main, ["--table", "--results", str(copy)]) == 2
    said = capsys.readouterr().err
    assert words in said and RESULT in said and said.count("\n") == 1 and "\x1b" not in said


@pytest.mark.parametrize("content, words", [
    (b"", "is not JSON"), (b'{"preset": "de', "is not JSON"), (b"\xff\x00", "is not JSON"),
    (b"[" * 100_000, "is not JSON"), (b"[]", "JSON object"), (b"3", "JSON object"),
    (b'{"seed": ' + b"9" * 5000 + b"}", "is not JSON"), (b"{}", "preset is missing")])
@pytest.mark.parametrize("name", [RESULT, "bench-scale.json"])
def test_a_file_that_is_no_json_object_is_one_line(copy, name, content, words, capsys):
    (copy / name).write_bytes(content)
    words = words.replace("preset", "command") if "bench" in name else words
    assert run(reproduce.main, ["--table", "--results", str(copy)]) == 2
    said = capsys.readouterr().err
    assert words in said and name in said and said.count("\n") == 1


@pytest.mark.parametrize("path, value, words", [
    (("device",), ..., "device is missing"), (("repeats",), 0, "repeats is 0"),
    (("length",), [], "length is []"), (("length", 1, "S"), ..., "length[1].S is missing"),
    (("length", 0, "tflops"), float("nan"), "length[0].tflops is nan"),
    (("size", 2, "params"), [1], "size[2].params is [1]"), (("exponents",), 3, "exponents is 3"),
    (("exponents", "seconds per token against S"), "x", "exponents.seconds per token")])
def test_a_benchmark_that_cannot_be_is_one_line(copy, path, value, words, capsys):
    change(copy / "bench-scale.json", path, value)
    assert run(reproduce.main, ["--table", "--results", str(copy)]) == 2
    said = capsys.readouterr().err
    assert words in said and "bench-scale.json" in said and said.count("\n") == 1


LINE_OF_BLOCKS = (b'{"size": 9, "order": "random", "solved": 1, "num": 2, "interval": [0.1, 0.9], '
                  b'"tokens": 81, "held_out_nats": 0.6}')


@pytest.mark.parametrize("content, words", [
    (b"{", "is not JSON"), (b"3", "JSON object"), (b"{}\n", "line 1: size is missing"),
    (b"\n", "is not JSON"), (b"", "line 1: size is missing"),
    (LINE_OF_BLOCKS.replace(b"random", b"margin"), "line 1: order is 'margin'"),
    (LINE_OF_BLOCKS, "order left_to_right is missing for blocks of 9")])
def test_lines_of_trained_blocks_that_cannot_be_are_one_line(copy, content, words, capsys):
    file = copy / "decoders" / "trained-blocks-seed0.jsonl"
    file.parent.mkdir()
    file.write_bytes(content)
    assert run(reproduce.main, ["--table", "--results", str(copy)]) == 2
    said = capsys.readouterr().err
    assert words in said and file.name in said and said.count("\n") == 1


def test_control_characters_never_reach_the_terminal(copy, capsys):
    for path in (("machine", "device"), ("machine", "torch"), ("rows", 0, "objective")):
        change(copy / RESULT, path, "\x1b[2Jcpu\r\n")
    for path in (("command",), ("device",), ("length", 0, "objective")):
        change(copy / "bench-scale.json", path, "\x1b[2Jx\x07")
    assert run(reproduce.main, ["--table", "--results", str(copy)]) == 0
    text = capsys.readouterr().out
    assert r"\x1b[2Jcpu\r\n" in text and r"\x1b[2Jx\x07" in text
    assert all(c.isprintable() or c == "\n" for c in text)


def test_other_files_are_left_alone(copy, capsys):
    """A run that no finding names is skipped; a folder called like a result is refused."""
    (copy / "demo" / "mine-seed0.json").write_text("not looked at")
    assert run(reproduce.main, ["--table", "--results", str(copy)]) == 0
    (copy / "demo" / "ar-seed0.json").mkdir()
    assert run(reproduce.main, ["--table", "--results", str(copy)]) == 2
    assert "cannot read" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------
# Figures


def test_figures(found, tmp_path):
    pytest.importorskip("matplotlib")
    files = figures.draw(found, tmp_path)
    assert files and all(f.read_bytes()[:4] == b"\x89PNG" for f in files)
    assert sorted(tmp_path.iterdir()) == sorted(files)  # nothing is left beside them
    # also before windows has been trained
    assert figures.draw({"sudoku6": found["sudoku6"]}, tmp_path) == [tmp_path / "sudoku6.png"]
    # and where no model takes the surest of all cells
    scdm = [result for result in found["sudoku9"] if result["name"] == "scdm"]
    assert scdm and figures.draw({"sudoku9": scdm}, tmp_path) == []


def test_the_curve_of_a_log(tmp_path):
    """Points are the rows with an evaluation; an impossible one is named by its line."""
    log = tmp_path / "a-seed0.csv"
    head = "step,seconds,loss_nats,lr_scale,solved,num\n1,0.5,1.0,1.0,,\n2,1.5,1.0,1.0,3,4\n"
    log.write_text(head)
    assert figures.curve(log) == ([1.5], [75.0])
    for row in ("3,2.0,1.0,1.0,5,4", "3,nan,1.0,1.0,1,4", "3,2.0,1.0,1.0,x,4", "3,2.0,1.0,1.0,0,0",
                "3,2.0,1.0,1.0,1", "3,,1.0,1.0,1,4"):
        log.write_text(f"{head}{row}\n")
        with pytest.raises(BadInput, match="a-seed0.csv line 4"):
            figures.curve(log)
    log.unlink()
    with pytest.raises(BadInput, match="a-seed0.csv"):
        figures.curve(log)
