"""reproduce.py and the README: the numbers come from results/, every command runs, the shipped model is what it was."""
import importlib.util
import json
import re
import shlex
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bench
import reproduce
import sample
import train
from conftest import TINY
from data import BadInput
from sample import run
from test_data import LINE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHRINK = dict(width=16, depth=1, heads=2, batch_size=8, max_steps=3, max_seconds=0.0, eval_samples=4)


@pytest.fixture
def tiny_findings(monkeypatch, data_dir):
    """Every preset of reproduce.py with models and runs shrunk; the code that runs is the real one."""
    def shrink(r):
        config = {**r.config, **SHRINK, "data_dir": data_dir}
        if str(config.get("task", "")).startswith("sudoku"):
            config["train_size"] = 20
        return replace(r, config=config)
    monkeypatch.setitem(train.PRESETS, "sudoku4", {**train.PRESETS["sudoku4"], **SHRINK})
    monkeypatch.setattr(reproduce, "FINDINGS", {p: tuple(map(shrink, runs)) for p, runs in reproduce.FINDINGS.items()})


def test_readme_table_is_the_results():
    """Fails when README and results/ differ; mend with: python reproduce.py --table --readme"""
    assert reproduce.update_readme(reproduce.tables(ROOT / "results"), README) == README
    assert all(f"<!-- {name}: " in README and f"<!-- end of {name} -->" in README for name in reproduce.tables(ROOT / "results"))


def test_results_are_consistent():
    """In every json: solved <= num, rate and interval follow from the counts, costs are plausible, and the log lies beside it."""
    files = list((ROOT / "results").glob("*/*.json"))
    assert files
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        assert result["preset"] == file.parent.name and file.name == f"{result['name']}-seed{result['seed']}.json"
        for row in result["rows"]:
            assert row["solved_rate"] == row["solved"] / row["num"] and tuple(row["interval"]) == sample.wilson(row["solved"], row["num"])
        if result["training"]:
            last = file.with_suffix(".csv").read_text(encoding="utf-8").splitlines()[-1].split(",")
            assert result["training"]["steps"] == int(last[0]) and result["training"]["seconds"] == float(last[1])


def test_demo_preset_runs_twice_and_says_what_it_did(tiny_findings, tmp_path, capsys):
    argv = ["--preset", "demo", "--num", "3", "--out", str(tmp_path / "o"), "--results", str(tmp_path / "r"), "--device", "cpu"]
    assert run(reproduce.main, argv) == 0
    first = capsys.readouterr().out
    assert first.count("trained live") >= 3 and "loaded from results/demo-dial" in first
    assert "n = 0 or n = all" in first and "W = 1 or W = all" in first and "the dial: n = 0" in first
    assert run(reproduce.main, argv) == 0
    assert "trained earlier" in capsys.readouterr().out
    rows = [r for f in (tmp_path / "r" / "demo").glob("*.json") for r in json.loads(f.read_text())["rows"]]
    assert len(rows) == 7 and all(r["num"] == 3 for r in rows)
    assert run(reproduce.main, ["--table", "--results", str(tmp_path / "r")]) == 0
    assert "| star G(2,4) | mtp (trained at W = all) | all |" in capsys.readouterr().out


@pytest.mark.parametrize("argv, words", [
    ([], "nothing to do"), (["--preset", "demmo"], "did you mean demo"), (["--preset", "demo", "--only", "mdm"], "legal: mtp-all, mtp-1"),
    (["--preset", "demo", "--only", "mtp-1"], "run mtp-all first"), (["--table"], "no results in")])
def test_mistakes_are_one_line_and_exit_2(argv, words, tmp_path, capsys):
    assert run(reproduce.main, [*argv, "--results", str(tmp_path), "--out", str(tmp_path / "o"), "--device", "cpu"]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_flags_that_shorten_and_the_readme_flag(tiny_findings, tmp_path, monkeypatch, capsys):
    """--only, --first-seed, --max-steps and --max-seconds do what they say, the json says so, and --table --readme writes the README beside the program."""
    argv = ["--preset", "demo", "--only", "mtp-all", "--first-seed", "3", "--max-steps", "2", "--max-seconds", "50", "--num", "2"]
    assert run(reproduce.main, [*argv, "--out", str(tmp_path / "o"), "--results", str(tmp_path / "r"), "--device", "cpu"]) == 0
    (file,) = (tmp_path / "r" / "demo").glob("*.json")
    result = json.loads(file.read_text())
    assert file.name == "mtp-all-seed3.json" and result["training"]["steps"] == 2
    assert (result["config"]["seed"], result["config"]["max_steps"], result["config"]["max_seconds"]) == (3, 2, 50.0)
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    monkeypatch.setattr(reproduce, "HERE", tmp_path)
    assert run(reproduce.main, ["--table", "--readme", "--results", str(tmp_path / "r")]) == 0
    written = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| star G(2,4) | mtp (trained at W = all) | all |" in written and "planning distance:" not in written and written.startswith(README[:500])


def test_unwritable_results_folder(tiny_findings, tmp_path, capsys):
    assert run(reproduce.main, ["--preset", "demo", "--num", "2", "--out", str(tmp_path), "--results", "/dev/null/r", "--device", "cpu"]) == 2
    assert "/dev/null/r" in capsys.readouterr().err.strip().splitlines()[-1]


def test_shipped_checkpoint_is_small_and_dialled():
    """At most 1.5M parameters and 3 MB, and its cost falls with the dial as the formula says."""
    file = ROOT / reproduce.DIAL_FILE
    assert file.stat().st_size <= 3_000_000
    model, task, config = sample.load_model(file, torch.device("cpu"))
    assert model.num_params() <= 1_500_000 and config.objective == "scdm"
    prompts, _ = task.test_set(2)
    cost = {n: sample.evaluate(model, task, "scdm", sample.make_dials("scdm", task, latents=n), prompts, None, 0, torch.device("cpu"), nullcontext())[0]["tokens"]
            for n in (0, 4, sample.ALL)}
    assert cost == {0: sum(i + 2 for i in range(36)), 4: sum(i + 2 + min(4, 35 - i) for i in range(36)), sample.ALL: 36 * 37}


def test_golden_output_of_the_shipped_checkpoint():
    """Greedy, left to right, all latents: catches drift of the sampler, the model or the file format."""
    model, task, _ = sample.load_model(ROOT / reproduce.DIAL_FILE, torch.device("cpu"))
    prompts, _ = task.test_set(1)
    dials = sample.make_dials("scdm", task, order="left_to_right", temperature=0.0)
    _, answers = sample.evaluate(model, task, "scdm", dials, prompts, None, 0, torch.device("cpu"), nullcontext())
    assert task.format(prompts[0], answers[0]) == GOLDEN


GOLDEN = "415263632514563142241635124356356421"


def test_figures(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    found = reproduce.load_results(ROOT / "results")
    files = reproduce.figures(found, tmp_path)
    assert files and all(f.read_bytes()[:4] == b"\x89PNG" for f in files)
    assert reproduce.figures({"sudoku6": found["sudoku6"]}, tmp_path) == [tmp_path / "sudoku6.png"]  # also before windows has been trained


def commands():
    """Every line of the README's bash blocks that starts with python."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    lines = [l.split(" #")[0].strip() for b in blocks for l in b.splitlines()]
    return [l for l in lines if l.startswith("python ")]


def test_readme_commands_run(tiny_findings, tmp_path, monkeypatch, data_dir, capsys):
    """Each command as it stands, in order, in an empty folder; only sizes are cut. A path that a command needs must be made by an earlier one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "results", tmp_path / "results")  # a copy: some commands write there
    (tmp_path / "puzzles.txt").write_text((LINE + "\n") * 3, encoding="utf-8")
    assert len(commands()) >= 10
    for command in commands():
        _, script, *argv = shlex.split(command)
        main = {"train.py": train.main, "sample.py": sample.main, "reproduce.py": reproduce.main, "bench.py": bench.main}[script]
        if script == "train.py" and "--resume" not in argv and "--help" not in argv:
            argv += TINY + ["--data-dir", data_dir] + (["--train-size", "20"] if any("sudoku" in a for a in argv) else [])
        if script == "bench.py":
            argv += ["--preset", "sudoku4", "--repeats", "1", "--batch-size", "2", "--device", "cpu"] + (["--what", "train"] if "--what" not in argv else [])
        if script == "sample.py" and "--num" in argv:
            argv[argv.index("--num") + 1] = "2"
        if script == "reproduce.py" and "--table" not in argv:
            argv += ["--results", str(tmp_path / "new")] + (["--num", "2", "--out", str(tmp_path / "o")] if "--figures" not in argv else [])
        if "--figures" in argv and importlib.util.find_spec("matplotlib") is None:
            continue  # an extra; test_figures is skipped likewise
        try:
            code = run(main, argv)
        except SystemExit as stop:  # --help
            code = stop.code
        assert code == 0, (command, capsys.readouterr().err)


def test_bench_counts_and_fits(capsys, monkeypatch):
    """Its token counts are the sampler's, its ratios refer to n = all, and the exponent of a power law is its power."""
    monkeypatch.setitem(train.PRESETS, "sudoku4", {**train.PRESETS["sudoku4"], **SHRINK})
    assert run(bench.main, ["--preset", "sudoku4", "--what", "sample", "--repeats", "1", "--batch-size", "2", "--json", "--device", "cpu"]) == 0
    rows = json.loads(capsys.readouterr().out)["sample"]
    assert [r["tokens"] for r in rows] == [3402, 3402 + sum(min(8, 80 - i) for i in range(81)), 3402 + sum(min(32, 80 - i) for i in range(81)), 6642, 6642, 81, 3321]
    assert rows[3]["seconds_ratio"] == 1 and rows[0]["tokens_ratio"] == 3402 / 6642
    assert bench.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_bench_scales(capsys, monkeypatch):
    """--what scale: one row for each length and size, and an exponent for both."""
    monkeypatch.setitem(train.PRESETS, "sudoku4", {**train.PRESETS["sudoku4"], **SHRINK})
    assert run(bench.main, ["--preset", "sudoku4", "--what", "scale", "--repeats", "1", "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["S"] for row in report["length"]] == [16, 36, 81, 162, 512] and len(report["size"]) == 3 and len(report["exponents"]) == 2
    assert report["size"][0]["params"] < report["size"][-1]["params"] and all(row["ms_per_step"] > 0 for row in report["length"])


def test_bench_of_two_processes(data_dir):
    """One process and two gloo ones train the same thing; the report says how fast and how alike."""
    config = train.Config(**dict(train.PRESETS["sudoku4"], width=16, depth=1, heads=2, batch_size=8, data_dir=data_dir, device="cpu", objective="scdm"))
    one, two = bench.time_processes(config, 2, steps=16)
    assert (one["processes"], two["processes"]) == (1, 2) and one["throughput_ratio"] == 1
    assert two["throughput_ratio"] == pytest.approx(one["ms_per_step"] / two["ms_per_step"])
    curves = [[v for k, v in row.items() if k.startswith("loss at")] for row in (one, two)]
    assert len(curves[0]) == 4 and curves[0] == pytest.approx(curves[1], abs=2e-5)
    with pytest.raises(BadInput, match="with 2 processes failed.*not a multiple"):
        bench.time_processes(replace(config, batch_size=9), 2, steps=8)


def test_bench_knows_its_kernels():
    """Names as they stood in a profile of one step."""
    names = {"nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_TNT": "matrix products", "void cublasLt::splitKreduce_kernel<32, 16>": "matrix products",
             "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16": "attention", "void cudnn::fusion::compute_dot_do_o_specialized<true, 64>": "attention",
             "triton_poi_fused__unsafe_view_gelu_5": "norms, activations, residuals, embeddings (fused by the compiler)", "void cunn_SpatialSoftMaxForward<float>": "loss",
             "void at::native::multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>>": "optimiser, clipping", "void at::native::radixSortKVInPlace<2>": "data, masks, copies"}
    assert {name: bench.kind_of(name) for name in names} == names


def test_bench_report_as_tables(monkeypatch, tmp_path, capsys):
    """--out holds what --json prints, and the README's tables are made from it."""
    monkeypatch.setitem(train.PRESETS, "sudoku4", {**train.PRESETS["sudoku4"], **SHRINK})
    file = tmp_path / "bench.json"
    assert run(bench.main, ["--preset", "sudoku4", "--what", "train", "--repeats", "1", "--json", "--device", "cpu", "--out", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report == json.loads(capsys.readouterr().out)
    text = bench.markdown(report)
    assert text.count("| scdm |") == 1 and "| muon |" in text and text.count("\n| mdm |") == 3


def test_readme_file_map_is_right():
    """Each file of the map exists, and no source file is missing from it."""
    section = README.split("## File map")[1].split("##")[0]
    named = set(re.findall(r"^    ([\w./]+)", section, re.M))
    assert all((ROOT / n).exists() for n in named), named
    assert {str(p.relative_to(ROOT)) for pattern in ("*.py", "data/[a-z]*.py") for p in ROOT.glob(pattern)} <= named


def test_readme_line_links_are_right():
    """`file.py:name` in the README names something that file defines."""
    found = re.findall(r"`([\w/]+\.py):(\w+)`", README)
    assert len(found) >= 5
    for file, name in found:
        assert re.search(rf"^\s*(def|class) {name}\b", (ROOT / file).read_text(encoding="utf-8"), re.M), (file, name)
