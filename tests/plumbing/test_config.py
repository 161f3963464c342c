"""Config: presets, flags and the config of a checkpoint pass one check."""
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest

import config as configuration
from config import CACHE, PRESETS, Config, from_checkpoint
from data import make_task
from plumbing.checkpoint import build_model
from plumbing.cli import BadInput, Parser, add_config_flags, run
from plumbing.show import parse_train_args
from train import main

ROOT = Path(__file__).parents[2]


def test_every_config_field_is_read():
    """Each field occurs as config.<name> outside its definition."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("plumbing/*.py")]
    source = "".join(f.read_text(encoding="utf-8") for f in files
                     if f.name not in ("config.py", "bench.py", "reproduce.py"))
    for f in fields(Config):
        assert re.search(rf"\bconfig\.{f.name}\b", source), f"{f.name} is never read"


def test_help_shows_the_comments(capsys):
    """Each field has one, with its default."""
    assert run(main, ["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for f in fields(Config):
        assert f"--{f.name.replace('_', '-')}" in text
    assert text.count("(default: ") == len(fields(Config))
    assert "embedding width (default: 128)" in text


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_legal_config(name, data_dir):
    """It is parsed, and its task and model can be built."""
    config, resume = parse_train_args("", ["--preset", name, "--data-dir", data_dir])
    assert not resume and all(getattr(config, k) == v for k, v in PRESETS[name].items())
    assert build_model(config, make_task(config)).num_params() > 1000


def test_flags_before_preset_before_defaults():
    config, _ = parse_train_args("", ["--preset", "sudoku4", "--width", "32", "--no-compile"])
    assert (config.width, config.depth, config.heads) == (32, 3, 4)


def test_every_number_has_a_range_and_its_flag_a_type():
    parser = Parser("")
    add_config_flags(parser)
    assert vars(parser.parse_args([])) == {}
    numbers = {f.name: f for f in fields(Config) if f.type in (int, float)}
    assert numbers.keys() == configuration.RANGES.keys()
    for name, f in numbers.items():
        text = str(f.default or configuration.RANGES[name][0])
        value = vars(parser.parse_args([f"--{name.replace('_', '-')}", text]))[name]
        assert type(value) is f.type


def test_a_config_equals_that_of_its_checkpoint():
    """The default data_dir replaces an empty one."""
    config = Config(task="star", objective="mtp", window="random", learning_rate=0.5)
    for data_dir in (CACHE, ""):
        assert from_checkpoint({**asdict(config), "data_dir": data_dir}, "F") == config


REFUSED = [  # field, value, part of the message
    ("width", "64", "--width is of type str, not int"),
    ("width", 64.0, "--width is of type float, not int"),
    ("width", True, "--width is of type bool, not int"),
    ("width", None, "--width is of type NoneType"),
    ("width", 0, "--width 0 is out of range"),
    ("width", 10**5000, "--width inf is out of range"),
    ("width", -10**5000, "--width -inf is out of range"),
    ("width", 12345, "--width 12345 is not a multiple of --heads 4"),
    ("learning_rate", float("nan"), "--learning-rate nan is out of range"),
    ("learning_rate", 10**400, "--learning-rate inf is out of range"),
    ("learning_rate", [1.0], "--learning-rate is of type list"),
    ("compile", 1, "--compile is of type int, not bool"),
    ("task", "sudoku9", "--task 'sudoku9' is unknown; legal: sudoku-gen"),
    ("task", "a\x1b[31mb", r"--task 'a\x1b[31mb' is unknown"),
    ("objective", ["mdm"], "--objective is of type list"),
    ("window", "0", "--window '0' is not an integer"),
    ("window", "\u0663", "is not an integer"),
    ("window", "9" * 5000, "is not an integer"),
    ("out", "a\0b", r"--out 'a\x00b' cannot be the name of a file"),
    ("data_dir", "\ud800", r"--data-dir '\ud800' cannot be the name of a file"),
    ("extra", 1, "has an unknown field extra"),
    ("a\x1bb", 1, r"has an unknown field a\x1bb"),
    ("depth", 256, "make a model of"),
    ("deep_supervision", -1, "--deep-supervision -1 is out of range; legal: 0 to 256"),
    ("grad_accum_steps", 3, "--batch-size 256 is not a multiple of --grad-accum-steps 3"),
]


@pytest.mark.parametrize("name, value, words", REFUSED, ids=map(str, range(len(REFUSED))))
def test_illegal_configs_are_refused(name, value, words):
    saved = {**asdict(Config(width=4096)), name: value}
    with pytest.raises(BadInput) as caught:
        from_checkpoint(saved, "F")
    assert words in str(caught.value) and str(caught.value).isprintable()
    assert str(caught.value).startswith("checkpoint F: its config ")


def test_a_config_that_lacks_a_field_is_refused():
    saved = asdict(Config())
    for name in saved:
        part = {k: v for k, v in saved.items() if k != name}
        with pytest.raises(BadInput, match=f"its config lacks field {name}; it is damaged or of"):
            from_checkpoint(part, "F")
    for thing in (None, [], "config", 3):
        with pytest.raises(BadInput, match="checkpoint F contains no config"):
            from_checkpoint(thing, "F")
