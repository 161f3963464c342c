"""results/: the pages say what the json files hold, and a damaged file is one line."""
import csv
import io
import itertools
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import reproduce
from config import MEANS_SOMETHING_FOR, Config
from data import make_task
from metrics import show_count, wilson
from objectives import make_sampling_params
from plumbing import figures, pages, report
from plumbing.cli import BadInput, run

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "results"
RESULT = "demo/mtp-all-seed0.json"


@pytest.fixture(scope="module")
def found():
    return report.load_results(RESULTS, reproduce.order())


@pytest.fixture(scope="module")
def rows(found):
    return [*pages.result_rows(RESULTS, found), *pages.bench_rows(RESULTS)]


@pytest.fixture
def copy(tmp_path):
    """A results folder of one result and one benchmark, to be damaged."""
    (tmp_path / "demo").mkdir()
    for name in (RESULT, "demo/mtp-all-seed0.csv", "bench-scale.json"):
        shutil.copyfile(RESULTS / name, tmp_path / name)
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


def test_pages_are_the_results(found):
    """Fails when a page or csv file and results/ differ; mend with: python reproduce.py --table"""
    front = ROOT / "README.md"
    made = pages.pages(RESULTS, found, reproduce.order(), front)
    assert {front, RESULTS / "README.md", RESULTS / "all.csv", RESULTS / "bench.csv"} <= made.keys()
    assert "<!-- end of findings -->" in front.read_text(encoding="utf-8")
    stale = [file.name for file, text in made.items() if file.read_text(encoding="utf-8") != text]
    assert not stale
    assert {file for file in RESULTS.glob("*.md")} <= made.keys()  # none without a source


def test_a_page_is_short_and_shows_its_figure():
    """At most 60 lines, a figure that FIGURES draws, a command; every figure is on a page."""
    texts = {file: file.read_text(encoding="utf-8") for file in RESULTS.glob("*.md")}
    shown = "".join(texts.values())
    assert all(f"({name}.png)" in shown for name in reproduce.FIGURES)
    for file, text in texts.items():
        assert len(text.splitlines()) <= 60
        if file.name != "README.md":
            assert "![" in text and f"]({file.stem}.png)" in text and "```bash" in text
            assert f"({file.name})" in texts[RESULTS / "README.md"]


def test_what_the_page_of_9x9_boards_says_of_the_seeds(rows):
    """bcdm is ahead of scdm in the mean at each n, and with each seed from n = 16 on."""
    for n in (0, 1, 2, 4, 8, 16, 32, 64, "all"):
        ours, paper = (pages.select(rows, f"sudoku9-gen/{run} latents={n}")[0]
                       for run in ("bcdm", "scdm"))
        assert ours["percent"] > paper["percent"] and ours["tokens"] == paper["tokens"]
        apart = n == "all" or n >= 16
        assert (min(ours["rates"]) > max(paper["rates"])) == apart


def test_every_row_is_in_the_csv_file(found):
    """With counts and interval, one row for each run and way of decoding, seeds added up."""
    lines = list(csv.DictReader(io.StringIO((RESULTS / "all.csv").read_text(encoding="utf-8"))))
    samples = sum(row["num"] for results in found.values() for d in results for row in d["rows"])
    whole = [x for x in lines if not x["distance"] and x["preset"] != "trained-blocks"]
    assert sum(int(x["num"]) for x in whole) == samples
    for x in lines:
        low, high = wilson(int(x["solved"]), int(x["num"]))
        assert float(x["low"]) == pytest.approx(100 * low, abs=1e-3)
        assert float(x["high"]) == pytest.approx(100 * high, abs=1e-3)
        assert len(x["per_seed"].split()) == int(x["seeds"])


def test_results_are_consistent():
    """In every json: rate and interval follow from the counts, and the log lies beside it."""
    files = list(RESULTS.glob("*/*.json"))
    assert files
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        for row in result["rows"]:
            assert row["solved_rate"] == row["solved"] / row["num"]
            assert tuple(row["interval"]) == wilson(row["solved"], row["num"])
        if result["training"]:
            last = file.with_suffix(".csv").read_text(encoding="utf-8").splitlines()[-1].split(",")
            assert result["training"]["steps"] == int(last[0])
            assert result["training"]["seconds"] == float(last[1])


def test_results_are_what_the_presets_make(found):
    """Each result has the config that its command would train today, and each row is one that the
    run's grid asks for. (What a run does not read, and what older files lack, may differ.)"""
    def ways_of(row):
        return (row["latents"], row.get("order"), row.get("tokens_per_step", 1), row.get("test"),
                row.get("restarts", 0), row.get("candidates"))

    for preset, results in found.items():
        runs = {r.name: r for r in reproduce.FINDINGS[preset]}
        for result in results:
            run = runs[result["name"]]
            today = asdict(Config(**run.config))
            free = {"seed", "out", "data_dir", *(["max_steps"] if run.steps_of else [])}
            free |= {name for name, (field, values) in MEANS_SOMETHING_FOR.items()
                     if today[field] not in values}
            had = {**asdict(Config()), **result["config"]}
            if not run.shipped:
                assert {k: had[k] for k in today.keys() - free} == {
                    k: today[k] for k in today.keys() - free}, (preset, run.name)
            if "decoder" in result["rows"][0]:
                continue
            config = Config(**{k: v for k, v in had.items() if k in today})
            task, legal = make_task(config), []
            for asked in run.grid:
                of_test = {k: asked[k] for k in ("test", "restarts") if k in asked}
                asked = {k: v for k, v in asked.items() if k not in of_test}
                sampling = make_sampling_params(config.objective, task, config.window, **asked)
                candidates = show_count(sampling.candidates, task.A) if of_test else None
                latents = show_count(sampling.latents, task.A - 1)
                legal.append(ways_of({**vars(sampling), **of_test, "candidates": candidates,
                                      "latents": latents}))
            assert {ways_of(row) for row in result["rows"]} <= set(legal), (preset, run.name)


# --------------------------------------------------------------------------------------------------
# Pooled rows, and how pages name them


def result(seed, *rows, **fields):
    """A result of one run whose rows are (latents, solved of 10) or dicts."""
    rows = [row if isinstance(row, dict) else {"latents": row[0], "solved": row[1]} for row in rows]
    whole = [{"objective": "scdm", "trained_window": None, "latents": 0, "num": 10, "nfe": 36,
              "tokens": 702, "seconds": 1.0, "solved_rate": row["solved"] / 10, **row}
             for row in rows]
    return {"preset": "p", "name": "r", "seed": seed, "training": None, "params": 1, "rows": whole,
            "wall_seconds": 60, "machine": {"device": "cpu"},
            "config": {"task": "sudoku-gen", "board_size": 6}, **fields}


def test_seeds_are_added_up_by_run_and_way_of_decoding():
    """A seed that was decoded otherwise makes rows of its own; counts are never mixed."""
    pooled = report.pool_seeds([result(0, (0, 1), (8, 5)), result(1, (0, 3), ("all", 9))])
    assert [(r["latents"], r["solved"], r["num"], r["seeds"]) for r in pooled] == [
        (0, 4, 20, 2), (8, 5, 10, 1), ("all", 9, 10, 1)]
    assert pooled[0]["rates"] == [0.1, 0.3] and pooled[0]["low"] == 100 * wilson(4, 20)[0]
    assert pooled[0]["sd"] == pytest.approx(100 * 0.02 ** 0.5) and pooled[1]["sd"] is None
    assert report.mean_and_sd(pooled[0]) == "20.0 ± 14.1"


def test_minutes_are_the_median_over_seeds_with_their_training():
    """Also where it was done earlier; where its minutes are not known, with its logged seconds."""
    steps = {"steps": 5, "seconds": 120.0, "peak_memory_gb": None}
    live, earlier = {**steps, "wall_seconds": 150.0}, "trained earlier, in out"
    results = [result(0, (0, 1), wall_seconds=180, training=live, source="trained live"),
               result(1, (0, 1), wall_seconds=60, training=live, source=earlier),
               result(2, (0, 1), wall_seconds=60, training=steps, source=earlier)]
    assert [report.wall_seconds(d) for d in results] == [180, 210, 180]
    assert report.pool_seeds(results)[0]["minutes"] == 3
    assert report.of_preset("p", results, ["r"])["minutes"] == 3


def test_planning_has_a_row_for_each_distance():
    counts = [{"0": [1, 2], "2": [3, 4]}, {"0": [0, 2], "3": [2, 2]}]
    pooled = report.pool_seeds([result(seed, {"solved": 4, "by_distance": c})
                                for seed, c in enumerate(counts)])
    assert [(r.get("distance"), r["solved"], r["num"]) for r in pooled] == [
        (None, 8, 20), ("0", 1, 4), ("2+", 5, 6)]  # 2 and 3 alone are of one seed


def test_decoders_are_compared_with_plain_on_the_same_puzzles():
    def row(name, bits, **params):
        return {"solved": 4, "num": 8, "decoder": name, "decoder_params": params, "restarts": 0,
                "test": "x.txt", "solved_bits": bits, "undone": 0, "order_tau": 0.5,
                "once_right": 4}
    plain, other = report.pool_seeds([
        result(0, row("plain", "f0", k=1), row("eb", "c3", gamma=0.1)),
        result(1, row("plain", "f0", k=1), row("eb", "3c", gamma=0.1))])
    assert (plain["gain"], plain["gain_half_width"]) == (0, 0) and plain["lost"] == 0.5
    assert other["gain"] == 0 and other["gain_half_width"] == pytest.approx(196 * (0.5 / 16) ** 0.5)
    assert other["decoder_params"] == "gamma=0.1" and other["latents"] is None


def test_percentages_do_not_hide_a_failure():
    assert [report.percent(x) for x in (100, 99.967, 99.9, 5.66, 99.9999)] == [
        "100.0", "99.97", "99.9", "5.7", "99.9999"]


def test_numbers_of_a_page(rows):
    """The first row that fits, in words; what names nothing is refused with its line."""
    three = [r for r in rows if (r["preset"], r["run"]) == ("sudoku9-gen", "ar")][0]
    text = ("- {{sudoku9-gen/ar}} {{sudoku9-gen/ar mean}} {{sudoku9-gen/ar per_seed}}\n"
            "{{sudoku9-gen/scdm latents=0 / sudoku9-gen/scdm latents=all tokens}}\n\n"
            "| {{sudoku9/mdm test=rad* order=random counts}} |\n")
    solved = [json.loads((RESULTS / f"sudoku9/mdm-seed{k}.json").read_text())["rows"][12]["solved"]
              for k in range(3)]
    assert pages.fill(text, rows, "P.md") == (
        f"- {three['percent']:.1f} {report.mean_and_sd(three)} 55, 31 and 91 0.512\n\n"
        f"| {sum(solved):,} of 7,500 |\n")
    for wrong in ("sudoku9-gen/nobody", "sudoku9-gen/ar test=x", "sudoku9-gen/ar gain", "no row"):
        with pytest.raises(BadInput, match="P.md line 2: a {{...}}"):
            pages.fill("# Title\n{{%s}}\n" % wrong, rows, "P.md")


def test_paragraphs_are_wrapped_and_the_rest_is_left_alone():
    long = "word " * 30
    text = f"# {long}\n{long}\n{long}\n- {long}\n  more\n\n| {long} |\n```bash\n{long}\n\n```\n"
    lines = pages.fill(text, [], "P.md").splitlines()
    assert lines[0] == f"# {long}" and lines[-5] == f"| {long} |" and lines[-3] == long
    assert lines[-2:] == ["", "```"]
    assert all(len(x) <= 100 for x in lines if x[:2] in ("wo", "- ", "  ") and x != long)
    assert " ".join(lines[1:-5]).split() == ["word"] * 60 + ["-"] + ["word"] * 30 + ["more"]


@pytest.mark.parametrize("page", [
    "<!-- a: python reproduce.py --table -->\n", "<!-- end of a -->\n",
    "<!-- end of a -->\n<!-- a: python reproduce.py --table -->\n",
    "<!-- a: python reproduce.py --table -->\n" * 2 + "<!-- end of a -->\n"])
def test_wrong_markers_are_refused(page):
    with pytest.raises(BadInput, match="P.md must hold <!-- a: .* each once"):
        pages.between_markers(page, "a", "new\n", "P.md")
    good = "x\n<!-- a: python reproduce.py --table -->\nold\n<!-- end of a -->\ny\n"
    assert pages.between_markers(good, "a", "new\n", "P.md") == good.replace("old", "new")


# --------------------------------------------------------------------------------------------------
# Files that are damaged


@pytest.mark.parametrize("path, value, words", [
    (("rows", 0, "num"), ..., "rows[0].num is missing"),
    (("rows", 0, "solved"), 5000, "rows[0].solved is 5000, more than num"),
    (("rows", 0, "solved"), True, "rows[0].solved is True"),
    (("rows", 0, "solved_rate"), 0.5, "rows[0].solved_rate"),
    (("rows", 0, "seconds"), float("nan"), "rows[0].seconds is nan"),
    (("rows", 0, "latents"), "most", "rows[0].latents is 'most'"),
    (("rows", 0, "by_distance"), {"0": [3, 2]}, "rows[0].by_distance"),
    (("rows", 0, "decoder"), "plain", "rows[0].decoder_params is missing"),
    (("rows", 0), 3, "rows[0] is 3"), (("rows",), [], "rows is []"),
    (("training",), ..., "training is missing"), (("training", "steps"), 1.5, "training.steps"),
    (("machine",), "cpu", "machine is 'cpu'"),
    (("seed",), 7, "demo/mtp-all-seed7.json"), (("name",), "x\x1b[31m", r"demo/x\x1b[31m-seed0")])
def test_a_result_that_cannot_be_is_one_line(copy, path, value, words, capsys):
    """--table, which reads it, names file and field and exits with 2."""
    change(copy / RESULT, path, value)
    assert run(reproduce.main, ["--table", "--results", str(copy)]) == 2
    said = capsys.readouterr().err
    assert words in said and RESULT in said and said.count("\n") == 1 and "\x1b" not in said


@pytest.mark.parametrize("content, words", [
    (b"", "is not JSON"), (b'{"preset": "de', "is not JSON"), (b"\xff\x00", "is not JSON"),
    (b"[" * 100_000, "is not JSON"), (b"[]", "is [], which cannot be"), (b"{}", "cannot be")])
@pytest.mark.parametrize("name", [RESULT, "bench-scale.json"])
def test_a_file_that_is_no_json_object_is_one_line(copy, name, content, words, capsys):
    (copy / name).write_bytes(content)
    assert run(reproduce.main, ["--table", "--results", str(copy)]) == 2
    said = capsys.readouterr().err
    assert words in said and name in said and said.count("\n") == 1


def test_a_benchmark_or_a_block_that_cannot_be_is_one_line(copy, capsys):
    change(copy / "bench-scale.json", ("length", 0, "tflops"), float("nan"))
    assert run(reproduce.main, ["--table", "--results", str(copy)]) == 2
    assert "length[0] is {" in capsys.readouterr().err
    file = copy / "decoders" / "trained-blocks-seed0.jsonl"
    file.parent.mkdir()
    file.write_text('{"size": 9, "order": "random", "num": 2}')
    assert run(reproduce.main, ["--table", "--results", str(copy)]) == 2
    assert f"{file.name}: field line 1.solved is missing" in capsys.readouterr().err


def test_control_characters_never_reach_the_terminal(copy, capsys):
    for path in (("machine", "device"), ("rows", 0, "objective")):
        change(copy / RESULT, path, "\x1b[2Jcpu\r\n")
    change(copy / "bench-scale.json", ("length", 0, "objective"), "\x1b[2Jx\x07")
    assert run(reproduce.main, ["--table", "--results", str(copy)]) == 0
    text = capsys.readouterr().out
    text += "".join((copy / name).read_text() for name in ("all.csv", "bench.csv"))
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


def test_figures(rows, found, tmp_path):
    """Every curve has rows; one's own results draw what they have, and the rule."""
    for name, (_, _, panels) in reproduce.FIGURES.items():
        for words in itertools.chain.from_iterable(map(figures.rows_named, panels)):
            absent = "mdm" in words and "candidates=8" in words or words == "demo/mdm"
            absent |= "boards" in words and "oracle" in words  # boards have no one solution
            assert absent or pages.select(rows, words), (name, words)
    pytest.importorskip("matplotlib")
    files = figures.draw(reproduce.FIGURES, rows, tmp_path)
    assert [f.stem for f in files] == [*reproduce.FIGURES, "rule"]
    assert all(f.read_bytes()[:4] == b"\x89PNG" for f in files)
    assert sorted(tmp_path.iterdir()) == sorted(files)  # nothing is left beside them
    own = pages.result_rows(tmp_path, {"planning": found["planning"]})
    assert [f.stem for f in figures.draw(reproduce.FIGURES, own, tmp_path)] == ["planning", "rule"]


def test_the_rule_as_a_picture():
    """What is drawn is what each objective looks at in a pass, with 3 known cells of 8."""
    def drawn(objective, n):
        kinds, rank = figures.ranks_of(objective, n)
        return kinds, figures.visible(rank).int().tolist()
    known = [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    assert drawn("ar", 0) == (["known"] * 3, [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    assert drawn("sidm", 0) == (["known"] * 3 + ["decoded"], [*known, [1, 1, 1, 1]])
    assert drawn("mdm", 4)[1] == torch.ones(8, 8).int().tolist()
    kinds, sees = drawn("scdm", 2)
    assert kinds == ["known"] * 3 + ["decoded"] + ["latent"] * 2
    assert sees == [*(row + [0, 0] for row in known), [1] * 6,
                    [1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 1, 1]]
    kinds, sees = drawn("bcdm", 2)
    assert kinds == ["known"] * 3 + ["decoded"] + ["latent"] * 2
    assert sees == [[1, 1, 1, 0, 1, 1]] * 3 + [[1] * 6] + [[1, 1, 1, 0, 1, 1]] * 2


def test_the_curve_of_a_log(tmp_path):
    """Points are the rows with an evaluation; an impossible one is named by its line."""
    log = tmp_path / "a-seed0.csv"
    head = "step,seconds,loss_nats,lr_scale,solved,num\n1,0.5,1.0,1.0,,\n2,1.5,1.0,1.0,3,4\n"
    log.write_text(head)
    assert figures.training(log) == ([1.5], [75.0])
    for row in ("3,2.0,1.0,1.0,5,4", "3,nan,1.0,1.0,1,4", "3,2.0,1.0,1.0,x,4", "3,2.0,1.0,1.0,1"):
        log.write_text(f"{head}{row}\n")
        with pytest.raises(BadInput, match="a-seed0.csv line 4"):
            figures.training(log)
    log.unlink()
    with pytest.raises(BadInput, match="a-seed0.csv"):
        figures.training(log)
