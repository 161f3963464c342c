"""bench.py: it counts what the sampler counts, its fits are right, its report is whole."""
import json
from dataclasses import replace

import pytest
import torch

import bench
import config as configuration
from data import Task
from plumbing.cli import BadInput, run
from plumbing.report import bench_markdown, read_bench

SHRINK = dict(width=16, depth=1, heads=2, batch_size=8, max_steps=3, max_seconds=0.0,
              eval_samples=4)
SMALL = ["--preset", "sudoku4", "--repeats", "1", "--json", "--device", "cpu"]


@pytest.fixture
def tiny_preset(monkeypatch):
    sudoku4 = {**configuration.PRESETS["sudoku4"], **SHRINK}
    monkeypatch.setitem(configuration.PRESETS, "sudoku4", sudoku4)


def test_bench_counts_and_fits(tiny_preset, capsys):
    """Its token counts are the sampler's, its ratios refer to n = all, its exponents are powers."""
    assert run(bench.main, [*SMALL, "--what", "sample", "--batch-size", "2"]) == 0
    rows = json.loads(capsys.readouterr().out)["sample"]

    def with_latents(n):
        return 3402 + sum(min(n, 80 - i) for i in range(81))

    assert [r["tokens"] for r in rows] == [
        3402, with_latents(8), with_latents(32), 6642, 6642, 81, 3321]
    assert [r["latents"] for r in rows] == [0, 8, 32, "all", None, None, None]
    assert all(type(r["nfe"]) is int and r["nfe"] == 81 for r in rows)
    assert rows[3]["seconds_ratio"] == 1 and rows[0]["tokens_ratio"] == 3402 / 6642
    assert bench.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_the_random_task_is_a_task():
    """Its starts and batches have the shapes and ids that the sampler and the loss ask for."""
    task = bench.RandomTask(10)
    tokens, given = task.train_batch(3, torch.Generator().manual_seed(0), "cpu")
    start = task.start(tokens[:, :task.P])
    assert tokens.shape == start.shape == (3, 10) and not given.any()
    assert (tokens[:, 0] == task.BOS).all() and (tokens[:, 1:] < task.K).all()
    assert (start[:, 1:] == task.MASK).all() and max(task.MASK, task.BOS) < task.V
    assert Task.blanks(task, start).all()


def test_bench_scales(tiny_preset, capsys):
    """--what scale: one row for each length and size, and an exponent for both."""
    assert run(bench.main, [*SMALL, "--what", "scale"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["S"] for row in report["length"]] == [16, 36, 81, 162, 512]
    assert len(report["size"]) == 3 and len(report["exponents"]) == 2
    assert report["size"][0]["params"] < report["size"][-1]["params"]
    assert all(row["ms_per_step"] > 0 for row in report["length"])


def test_bench_of_two_processes(data_dir):
    """One process and two gloo ones train the same thing; the report says how fast, how alike."""
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


def test_bench_knows_its_kernels():
    """Names as they stood in a profile of one step."""
    fused = "norms, activations, residuals, embeddings (fused by the compiler)"
    names = {
        "nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_TNT": "matrix products",
        "void cublasLt::splitKreduce_kernel<32, 16>": "matrix products",
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16": "attention",
        "void cudnn::fusion::compute_dot_do_o_specialized<true, 64>": "attention",
        "triton_poi_fused__unsafe_view_gelu_5": fused,
        "void cunn_SpatialSoftMaxForward<float>": "loss",
        "void at::native::multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>>":
            "optimiser, clipping",
        "void at::native::radixSortKVInPlace<2>": "data, masks, copies"}
    assert {name: bench.kind_of(name) for name in names} == names


def test_bench_report_as_tables(tiny_preset, tmp_path, capsys):
    """--out holds what --json prints, and the tables are made from it."""
    file = tmp_path / "new" / "bench.json"
    assert run(bench.main, [*SMALL, "--what", "train", "--out", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report == json.loads(capsys.readouterr().out) == read_bench(file)
    text = bench_markdown(report)
    assert text.count("| scdm |") == 1 and "| muon |" in text and text.count("\n| mdm |") == 3
    assert list(file.parent.iterdir()) == [file]  # nothing is left beside it


def test_the_model_may_have_another_size():
    """Heads of 128 and twice the batch are measured apart and together, where heads fit."""
    args = bench.parse_args(["--preset", "sudoku9", "--width", "512", "--depth", "6"])
    config = bench.chosen_config(args, torch.device("cpu"))
    assert (config.width, config.depth, config.heads) == (512, 6, 8)
    kinds = {(c.heads, c.batch_size) for c in bench.training_kinds(config, torch.device("cpu"))}
    assert kinds == {(8, 512), (8, 1024), (4, 512), (4, 1024)}
    narrow = bench.chosen_config(bench.parse_args(["--width", "96"]), torch.device("cpu"))
    kinds = bench.training_kinds(narrow, torch.device("cpu"))
    assert {c.heads for c in kinds} == {narrow.heads}
    assert {narrow.batch_size, 2 * narrow.batch_size} == {c.batch_size for c in kinds}


@pytest.mark.parametrize("argv, words", [
    (["--width", "100", "--heads", "3"], "not a multiple of --heads 3"),
    (["--what", "speed"], "legal: train, sample"), (["--repeats", "0"], "--repeats"),
    (["--out", ""], "is not a path"), (["--out", "/dev/null/b.json"], "/dev/null/b.json"),
    (["--preset", "sudoku44"], "did you mean sudoku4")])
def test_mistakes_are_one_line_and_exit_2(argv, words, capsys):
    assert run(bench.main, [*SMALL, *argv]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert words in said[-1] and "Traceback" not in "".join(said)


def test_puzzles_are_measured_in_the_layout_that_all_objectives_can_train():
    args = bench.parse_args(["--preset", "sudoku9-cpu"])
    config = bench.chosen_config(args, torch.device("cpu"))
    for objective in ("mdm", "ar", "mtp"):
        configuration.check(replace(config, objective=objective))
    assert bench.make_task(config).S == 162


def test_what_is_measured_does_not_depend_on_the_recipe_of_the_preset():
    """The flops that are counted are those of one reading, after the last block."""
    recipe = configuration.PRESETS["sudoku9-gen"]
    assert recipe["optimizer"] == "muon" and recipe["deep_supervision"] > 0
    config = bench.chosen_config(bench.parse_args(["--preset", "sudoku9-gen"]), torch.device("cpu"))
    assert (config.optimizer, config.deep_supervision) == ("adamw", 0)
