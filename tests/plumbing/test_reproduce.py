"""reproduce.py: presets run in miniature, mistakes are one line, the shipped model is what it was.

The commands of the pages run here too, as they stand; only sizes are cut.
"""
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bench
import config as configuration
import reproduce
import sample
import train
from conftest import LINE, TINY
from objectives import ALL, make_sampling_params
from plumbing import report
from plumbing.checkpoint import COLUMNS, load_model
from plumbing.cli import run
from studies import block_diffusion, exact
from viewer import make_live

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = "".join(file.read_text(encoding="utf-8") for file in sorted(ROOT.glob("results/*.md")))
SHRINK = dict(width=16, depth=1, heads=2, batch_size=8, max_steps=3, max_seconds=0.0,
              eval_samples=4, deep_supervision=0)
CPU = torch.device("cpu")


@pytest.fixture
def tiny_findings(monkeypatch, data_dir):
    """Every preset with models and runs shrunk; the code that runs is the real one."""
    def shrink(r):
        config = {**r.config, **SHRINK, "data_dir": data_dir}
        if str(config.get("task", "")).startswith("sudoku"):
            config["train_size"] = 20
        grid = r.grid[::16] if "decoder" in r.grid[0] else r.grid
        return replace(r, config=config, grid=grid)

    sudoku4 = {**configuration.PRESETS["sudoku4"], **SHRINK}
    monkeypatch.setitem(configuration.PRESETS, "sudoku4", sudoku4)
    tiny = {preset: tuple(map(shrink, runs)) for preset, runs in reproduce.FINDINGS.items()}
    monkeypatch.setattr(reproduce, "FINDINGS", tiny)


@pytest.fixture
def folders(tmp_path):
    """Flags: everything is written below tmp_path."""
    return ["--out", str(tmp_path / "o"), "--results", str(tmp_path / "r"), "--device", "cpu"]


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


# --------------------------------------------------------------------------------------------------
# Presets


def test_demo_preset_runs_twice_and_says_what_it_did(tiny_findings, folders, tmp_path, capsys):
    argv = ["--preset", "demo", "--num", "3", *folders]
    assert run(reproduce.main, argv) == 0
    first = capsys.readouterr().out
    assert first.count("trained live") >= 3 and "loaded from results/demo-dial" in first
    assert "n = 0 or n = all" in first and "W = 1 or W = all" in first
    assert run(reproduce.main, argv) == 0
    assert "trained earlier" in capsys.readouterr().out
    files = list((tmp_path / "r" / "demo").glob("*.json"))
    rows = [r for f in files for r in json.loads(f.read_text())["rows"]]
    assert len(rows) == 7 and all(r["num"] == 3 for r in rows)
    assert all({"distinct", "references"} <= r.keys() for r in rows)
    assert not list(tmp_path.glob("r/**/*.tmp"))
    assert run(reproduce.main, ["--table", "--results", str(tmp_path / "r")]) == 0
    assert "| mtp-all | star G(2,4) | all |" in capsys.readouterr().out


def test_a_training_is_shared(tiny_findings, folders, tmp_path, capsys):
    """`decoders` takes up what sudoku9-gen trained, and what its json knows of it. The json of
    another machine, whose training took other steps, is not believed."""
    def training_of(preset, name):
        file = tmp_path / "r" / preset / f"{name}-seed0.json"
        return json.loads(file.read_text())["training"], file

    assert run(reproduce.main, ["--preset", "sudoku9-gen", "--only", "mdm", "--num", "2",
                                *folders]) == 0
    first, file = training_of("sudoku9-gen", "mdm")
    assert "trained live" in capsys.readouterr().out
    again = ["--preset", "decoders", "--only", "boards", "--num", "2", *folders]
    assert run(reproduce.main, again) == 0
    assert "trained earlier" in capsys.readouterr().out
    assert training_of("decoders", "boards")[0] == first
    foreign = json.loads(file.read_text())
    foreign["training"].update(steps=first["steps"] + 1, seconds=1e6)
    file.write_text(json.dumps(foreign))
    assert run(reproduce.main, again) == 0
    assert training_of("decoders", "boards")[0]["seconds"] == first["seconds"]


@pytest.mark.parametrize("argv, words", [
    ([], "nothing to do"),
    (["--preset", "demmo"], "did you mean demo"),
    (["--preset", "demo", "--only", "mdm"], "legal: mtp-all, mtp-1"),
    (["--preset", "demo", "--only", "a\x1b[31m"], r"\x1b[31m is not in preset"),
    (["--preset", "demo", "--only", "mtp-1"], "run mtp-all first"),
    (["--preset", "demo", "--num", "0"], "--num"),
    (["--preset", "demo", "--max-steps", "1e400"], "--max-steps"),
    (["--table"], "no results in"),
    (["--table", "--results", ""], "'' is not a path"),
    (["--table", "--out", " "], "is not a path"),
    (["--tabel"], "did you mean --table")])
def test_mistakes_are_one_line_and_exit_2(argv, words, folders, capsys):
    assert run(reproduce.main, [*folders, *argv]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert words in said[-1] and "Traceback" not in "".join(said) and "\x1b" not in said[-1]


def test_flags_that_shorten_and_the_pages_of_a_results_folder(tiny_findings, folders, tmp_path,
                                                               monkeypatch):
    """--only, --first-seed, --max-steps and --max-seconds do what they say, and the json says so.

    --table fills in the pages of the folder, and the findings of the README beside the program.
    """
    argv = ["--preset", "demo", "--only", "mtp-all", "--first-seed", "3", "--max-steps", "2",
            "--max-seconds", "50", "--num", "2"]
    assert run(reproduce.main, [*argv, *folders]) == 0
    (file,) = (tmp_path / "r" / "demo").glob("*.json")
    result = json.loads(file.read_text())
    assert file.name == "mtp-all-seed3.json" and result["training"]["steps"] == 2
    config = result["config"]
    assert (config["seed"], config["max_steps"], config["max_seconds"]) == (3, 2, 50.0)
    assert shlex.split(result["command"])[:4] == ["python", "reproduce.py", "--preset", "demo"]
    assert file.with_suffix(".csv").read_text() == (
        tmp_path / "o" / "demo" / "mtp-all-seed3" / "log.csv").read_text()
    # the pages
    monkeypatch.setattr(reproduce, "HERE", tmp_path)
    pages, table = tmp_path / "r" / "pages", ["--table", "--results", str(tmp_path / "r")]
    pages.mkdir()
    (pages / "stars.md").write_text("{{demo/mtp-all counts}} and {{demo/preset command}}\n")
    (pages / "findings.md").write_text("| {{demo/mtp-all num}} |\n")
    front = ["# A page", "<!-- findings: python reproduce.py --table -->",
             "<!-- end of findings -->", "end"]
    (tmp_path / "README.md").write_text("\n".join(front), encoding="utf-8")
    assert run(reproduce.main, table) == 0
    written = (tmp_path / "r" / "stars.md").read_text().splitlines()
    assert written[1:] == [f"{result['rows'][0]['solved']} of 2 and "
                           "python reproduce.py --preset demo --only mtp-all"]
    assert (tmp_path / "README.md").read_text().splitlines() == [*front[:2], "| 2 |", *front[2:]]
    assert '\ndemo,mtp-all,"star G(2,4)",' in (tmp_path / "r" / "all.csv").read_text()
    (pages / "stars.md").write_text("new {{demo/ar}}")  # not trained: nothing is written
    assert run(reproduce.main, table) == 2
    assert (tmp_path / "r" / "stars.md").read_text().splitlines() == written


def test_unwritable_results_folder(tiny_findings, tmp_path, capsys):
    assert run(reproduce.main, ["--preset", "demo", "--num", "2", "--out", str(tmp_path),
                                "--results", "/dev/null/r", "--device", "cpu"]) == 2
    assert "/dev/null/r" in last_line(capsys)


def test_a_trained_checkpoint_can_be_shipped(tiny_findings, folders, tmp_path):
    """demo-dial keeps its weights in bf16 without what only training needs, and they load."""
    assert run(reproduce.main, ["--preset", "demo-dial", "--num", "2", *folders]) == 0
    file = tmp_path / "r" / "demo-dial" / "scdm-seed0.pt"
    saved = torch.load(file, weights_only=True)
    assert saved.keys() == {"model", "step", "config", "versions"} and saved["config"]["out"] == ""
    assert {v.dtype for v in saved["model"].values()} == {torch.bfloat16}
    _, task, config = load_model(file, CPU)
    assert config.objective == "scdm" and task.N == 6


# --------------------------------------------------------------------------------------------------
# Results that are already there, and damaged


def test_a_cut_off_result_of_another_run_is_one_line(tiny_findings, folders, tmp_path, capsys):
    """mtp-1 takes its steps from mtp-all: cut off, invalid or without a training it is refused."""
    argv = ["--preset", "demo", "--num", "2", *folders]
    assert run(reproduce.main, [*argv, "--only", "mtp-all"]) == 0
    file = tmp_path / "r" / "demo" / "mtp-all-seed0.json"
    whole = file.read_text()
    nothing, no_steps = json.loads(whole), json.loads(whole)
    nothing["training"] = None
    no_steps["training"]["steps"] = "many"
    for text, words in ((whole[:200], "is not JSON"), (json.dumps(nothing), "training is null"),
                        (json.dumps(no_steps), "training.steps is 'many'")):
        file.write_text(text)
        capsys.readouterr()
        assert run(reproduce.main, [*argv, "--only", "mtp-1"]) == 2
        said = last_line(capsys)
        assert words in said and "mtp-all-seed0.json" in said


def test_a_cut_off_result_is_written_again(tiny_findings, folders, tmp_path, capsys):
    argv = ["--preset", "demo", "--only", "mtp-all", "--num", "2", *folders]
    assert run(reproduce.main, argv) == 0
    file = tmp_path / "r" / "demo" / "mtp-all-seed0.json"
    whole = json.loads(file.read_text())
    file.write_text(file.read_text()[:200])
    assert run(reproduce.main, argv) == 0
    assert "written again" in capsys.readouterr().err
    again = report.read_result(file)
    for name in ("steps", "seconds", "loss_nats"):  # from the log
        assert again["training"][name] == whole["training"][name]
    assert again["rows"][0]["solved"] == whole["rows"][0]["solved"]


@pytest.mark.parametrize("content, words", [
    (None, "cannot read log"), (b"", "does not end in a row"), (b"\xff\n", "cannot read log"),
    (b"3,soon,1.0\n", "does not end in a row"), (b"3,nan,1.0\n", "does not end in a row")])
def test_a_damaged_log_is_one_line(content, words, tiny_findings, folders, tmp_path, capsys):
    """It is asked only where no earlier result knows what the training took."""
    argv = ["--preset", "demo", "--only", "mtp-all", "--num", "2", *folders]
    assert run(reproduce.main, argv) == 0
    log = tmp_path / "o" / "demo" / "mtp-all-seed0" / "log.csv"
    log.unlink()
    if content is not None:
        log.write_bytes(",".join(COLUMNS).encode() + b"\n" + content)
    assert run(reproduce.main, argv) == 0
    (tmp_path / "r" / "demo" / "mtp-all-seed0.json").unlink()
    assert run(reproduce.main, argv) == 2
    assert words in last_line(capsys)


# --------------------------------------------------------------------------------------------------
# The shipped checkpoint


def generate(n, seed=0, num=1, **sampling):
    """Boards of the shipped checkpoint -> task, metrics, start, answers."""
    model, task, config = load_model(ROOT / reproduce.SHIPPED, CPU)
    start, _ = task.test_set(num)
    sampling = make_sampling_params(config.objective, task, latents=n, **sampling)
    metrics, answers, _ = sample.evaluate(model, task, config.objective, sampling, start, None,
                                          seed, CPU, nullcontext())
    return task, metrics, start, answers


def test_shipped_checkpoint_is_small_and_dialled():
    """At most 1.5M parameters and 3 MB, and its cost falls with the dial as the formula says."""
    file = ROOT / reproduce.SHIPPED
    assert file.stat().st_size <= 3_000_000
    model, _, config = load_model(file, CPU)
    assert model.num_params() <= 1_500_000 and config.objective == "scdm"
    cost = {n: generate(n, num=2)[1]["tokens"] for n in (0, 4, ALL)}
    assert cost == {0: sum(i + 2 for i in range(36)),
                    4: sum(i + 2 + min(4, 35 - i) for i in range(36)), ALL: 36 * 37}


def test_golden_output_of_the_shipped_checkpoint():
    """Greedy, left to right: catches drift of the sampler, the model or the file format.

    Without latents nothing is random; with all of them their order is, and so the random numbers
    are held as well.
    """
    for n, board in ((0, "235614164253642531513462326145451326"),
                     (None, "415263632514154632326145241356563421")):
        task, _, start, answers = generate(n, order="left_to_right", temperature=0.0)
        assert task.format(start[0], answers[0]) == board


def test_the_board_that_moves_on_the_first_page():
    """It ends as README.md says, and its seed is the first at which n = 0 and n = all differ."""
    solved = [[generate(n, seed)[1]["solved"] for n in (0, ALL)]
              for seed in range(reproduce.BOARD_SEED + 1)]
    assert solved[-1] == [0, 1] and all(zero == all_ for zero, all_ in solved[:-1])


# --------------------------------------------------------------------------------------------------
# Programs and pages


@pytest.mark.parametrize("argv", [["reproduce.py", "--help"], ["bench.py", "--help"]])
def test_without_docstrings(argv):
    """python -OO drops docstrings and asserts."""
    done = subprocess.run([sys.executable, "-OO", *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout and not done.stderr


@pytest.mark.parametrize("program", ["reproduce.py", "bench.py"])
def test_signals_are_caught_before_torch_loads(program):
    """The first statement below the docstring imports plumbing.interrupt, in the program itself."""
    source = (ROOT / program).read_text(encoding="utf-8").split('"""', 2)[2].strip()
    assert source.startswith('if __name__ == "__main__":\n    import plumbing.interrupt')


def commands():
    """Every line of the bash blocks of README.md and of results/ that starts with python."""
    blocks = re.findall(r"```bash\n(.*?)```", README + PAGES, re.S)
    lines = [line.split(" #")[0].strip() for b in blocks for line in b.splitlines()]
    return [line for line in lines if line.startswith("python ")]


def cut_down(script, argv, tmp_path, data_dir):
    """The arguments of a command -> the same ones, made small."""
    if script == "train.py" and "--resume" not in argv and "--help" not in argv:
        argv = [*argv, *TINY, "--data-dir", data_dir]
        argv += ["--train-size", "20"] if any("sudoku" in a for a in argv) else []
    if script == "bench.py":
        argv = [*argv, "--preset", "sudoku4", "--repeats", "1", "--batch-size", "2"]
        argv += ["--width", "16", "--depth", "1", "--heads", "2", "--device", "cpu"]
        argv += [] if "--what" in argv else ["--what", "train"]
    if script == "-m studies.exact":
        argv = [*argv, "--num", "4", "--decoder", "plain"]
    if script == "-m studies.block_diffusion" and argv[0] == "train":
        argv = [*argv, "--width", "16", "--depth", "4", "--heads", "2", "--batch-size", "2"]
        argv += ["--max-steps", "2", "--train-size", "20", "--data-dir", data_dir]
    if script in ("sample.py", "-m studies.block_diffusion") and "--num" in argv:
        at = argv.index("--num") + 1
        argv = [*argv[:at], "2", *argv[at + 1:]]
    if script == "reproduce.py" and "--table" not in argv:
        argv = [*argv, "--results", str(tmp_path / "new")]
        small = ["--num", "2", "--seeds", "1", "--out", str(tmp_path / "o")]
        argv += [] if "--figures" in argv else small
    return argv


def test_readme_commands_run(tiny_findings, tmp_path, monkeypatch, data_dir, capsys):
    """Each command as it stands, in order, in an empty folder; only sizes are cut.

    A path that a command needs must be made by an earlier one.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "HERE", tmp_path)  # some commands write there
    shutil.copytree(ROOT / "results", tmp_path / "results")
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    (tmp_path / "puzzles.txt").write_text((LINE + "\n") * 3, encoding="utf-8")
    mains = {"train.py": train.main, "sample.py": sample.main, "reproduce.py": reproduce.main,
             "bench.py": bench.main, "viewer/make_live.py": make_live.main,
             "-m studies.exact": exact.main, "-m studies.block_diffusion": block_diffusion.main}
    assert len(commands()) >= 10
    for command in dict.fromkeys(commands()):
        _, script, *argv = shlex.split(command.replace("-m ", "-m\\ "))
        if "--figures" in argv and importlib.util.find_spec("matplotlib") is None:
            continue  # an extra; test_figures is skipped likewise
        code = run(mains[script], cut_down(script, argv, tmp_path, data_dir))
        assert code == 0, (command, capsys.readouterr().err)


def test_readme_file_map_is_right():
    """Each file of the map exists, and no source file is missing from it."""
    section = README.split("## File map")[1].split("##")[0]
    named = set(re.findall(r"^    ([\w./]+)", section, re.M))
    assert all((ROOT / n).exists() for n in named), named
    assert {p.name for p in ROOT.glob("*.py")} <= named
    assert {f"{p.parent.name}/" for p in ROOT.glob("[a-z]*/*.py")} <= named | {"tests/"}


def test_readme_line_links_are_right():
    """`file.py:name` in README.md and results/ names something that file defines."""
    found = re.findall(r"`([\w/]+\.py):(\w+)`", README + PAGES)
    assert len(found) >= 5
    for file, name in found:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^\s*(def|class) {name}\b|^{name} = ", source, re.M), (file, name)
