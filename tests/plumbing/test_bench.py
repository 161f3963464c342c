"""bench.py: its counts are those of the sampler, its fits are right, its report is complete."""
import json
from dataclasses import replace

import pytest
import torch

import bench
import config as configuration
from objectives import OBJECTIVES
from plumbing.cli import BadInput, run
from plumbing.report import bench_markdown, read_bench

SHRINK = dict(width=16, depth=1, heads=2, batch_size=8, max_steps=3, max_seconds=0.0,
              eval_samples=4)
SMALL = ["--preset", "sudoku4", "--repeats", "1", "--json", "--device", "cpu"]


CPU = torch.device("cpu")


def chosen(*argv):
    return bench.chosen_config(bench.parse_args(argv), CPU)


@pytest.fixture
def tiny_preset(monkeypatch):
    sudoku4 = {**configuration.PRESETS["sudoku4"], **SHRINK}
    monkeypatch.setitem(configuration.PRESETS, "sudoku4", sudoku4)


@pytest.fixture
def measured(tiny_preset, capsys):
    """-> call(*argv) -> the JSON report of bench.py at a tiny size."""
    def call(*argv):
        assert run(bench.main, [*SMALL, *argv]) == 0
        return json.loads(capsys.readouterr().out)
    return call


def test_sampling_is_measured(measured):
    """Token counts are those of decoding; ratios are relative to n = all."""
    rows = measured("--what", "sample", "--batch-size", "2")["sample"]

    def with_latents(n):
        return 3402 + sum(min(n, 80 - i) for i in range(81))

    assert [r["tokens"] for r in rows] == [
        3402, with_latents(8), with_latents(32), 6642, 6642, 81, 3321]
    assert [r["latents"] for r in rows] == [0, 8, 32, "all", None, None, None]
    assert all(type(r["nfe"]) is int and r["nfe"] == 81 for r in rows)
    assert rows[3]["seconds_ratio"] == 1 and rows[0]["tokens_ratio"] == 3402 / 6642


def test_scales_are_measured(measured):
    """One row for each length and size, and an exponent for both."""
    report = measured("--what", "scale")
    assert [row["S"] for row in report["length"]] == [16, 36, 81, 162, 512]
    assert len(report["size"]) == 3 and len(report["exponents"]) == 2
    assert report["size"][0]["params"] < report["size"][-1]["params"]
    assert all(row["ms_per_step"] > 0 for row in report["length"])
    assert bench.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_bench_of_two_processes(data_dir):
    """One process and two gloo processes train the same model; the report has speeds and losses."""
    fields = dict(width=16, depth=1, heads=2, batch_size=8, data_dir=data_dir, device="cpu")
    config = configuration.Config(
        **{**configuration.PRESETS["sudoku4"], **fields, "objective": "scdm"})
    one, two = bench.time_world_sizes(config, 2, steps=16)
    assert (one["world_size"], two["world_size"]) == (1, 2) and one["throughput_ratio"] == 1
    assert two["throughput_ratio"] == pytest.approx(one["ms_per_step"] / two["ms_per_step"])
    curves = [[v for k, v in row.items() if k.startswith("loss at")] for row in (one, two)]
    assert len(curves[0]) == 4 and curves[0] == pytest.approx(curves[1], abs=2e-5)
    with pytest.raises(BadInput, match="with 2 processes failed.*not a multiple"):
        bench.time_world_sizes(replace(config, batch_size=9), 2, steps=8)


def test_kinds_of_kernels():
    """Names from a profile of one step."""
    names = {"nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_TNT": "matrix products",
             "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16": "attention",
             "void cunn_SpatialSoftMaxForward<float>": "loss",
             "void at::native::multi_tensor_apply_kernel<FusedOptimizer<4>>": "optimiser, clipping",
             "void at::native::radixSortKVInPlace<2>": "data, masks, copies"}
    assert {name: bench.kind_of(name) for name in names} == names


def test_training_is_measured(measured, tmp_path):
    """--out writes what --json prints; the tables are made from it."""
    file = tmp_path / "new" / "bench.json"
    report = measured("--what", "train", "--out", str(file))
    assert report == json.loads(file.read_text()) == read_bench(file)
    text = bench_markdown(report)
    assert text.count("| scdm |") == 1 and "| muon |" in text and text.count("\n| mdm |") == 3
    assert list(file.parent.iterdir()) == [file]


def test_the_model_may_have_another_size():
    """Twice the batch and, if they fit, heads of width 128 are measured alone and together."""
    config = chosen("--preset", "sudoku9", "--width", "512", "--depth", "6")
    assert (config.width, config.depth, config.heads) == (512, 6, 8)
    kinds = {(c.heads, c.batch_size) for c in bench.training_kinds(config, CPU)}
    assert kinds == {(8, 512), (8, 1024), (4, 512), (4, 1024)}
    narrow = chosen("--width", "96")
    kinds = {(c.heads, c.batch_size) for c in bench.training_kinds(narrow, CPU)}
    assert kinds == {(narrow.heads, narrow.batch_size), (narrow.heads, 2 * narrow.batch_size)}


@pytest.mark.parametrize("argv, words", [
    (["--width", "100", "--heads", "3"], "not a multiple of --heads 3"),
    (["--what", "speed"], "legal: train, sample"),
    (["--out", "/dev/null/b.json"], "/dev/null/b.json")])
def test_mistakes_are_one_line_and_exit_2(argv, words, capsys):
    assert run(bench.main, [*SMALL, *argv]) == 2
    error = capsys.readouterr().err
    assert words in error.splitlines()[-1] and "Traceback" not in error


def test_what_is_measured_does_not_depend_on_the_recipe():
    """Every objective can train on the layout; the flops are those of one reading with AdamW."""
    config = chosen("--preset", "sudoku9-cpu")
    for objective in OBJECTIVES:
        configuration.check(replace(config, objective=objective))
    assert bench.make_task(config).S == 162
    recipe = configuration.PRESETS["sudoku9-gen"]
    assert recipe["optimizer"] == "muon" and recipe["deep_supervision"] > 0
    config = chosen("--preset", "sudoku9-gen")
    assert (config.optimizer, config.deep_supervision) == ("adamw", 0)
