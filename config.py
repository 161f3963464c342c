"""All parameters of a training run: one dataclass, its presets, and one check of both.

Defaults < preset < flags. The comments of the fields are the --help of train.py. A checkpoint
contains its Config, which passes the same check when it is read.
"""
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path

from data import TASKS
from errors import BadInput, printable
from objectives import OBJECTIVES

DEVICES = ("auto", "cpu", "cuda", "mps")
CACHE = str(Path(__file__).parent / "data" / "cache")


@dataclass
class Config:  # the comments are the --help
    # the task
    task: str = "sudoku-gen"  # sudoku-gen (boards) | sudoku (puzzles) | star | planning
    board_size: int = 0  # side of the board, 4, 6 or 9; 0: 4 for sudoku-gen, 9 for sudoku
    layout: str = "inplace"  # sudoku: givens are known cells (inplace), or a prompt (prompt)
    minimal_fraction: float = 0.2  # sudoku: fraction of training puzzles without extra givens
    arms: int = 2  # star: number of arms d
    path_len: int = 4  # star: nodes on each arm l, including the start
    labels: int = 50  # star, planning: number of node names
    train_size: int = 0  # boards, puzzles or graphs; 0: 20,000, or fresh graphs in each batch
    train_file: str = ""  # sudoku: train on the puzzles of this file, with their solutions
    data_dir: str = CACHE  # folder of generated data sets
    # the objective
    objective: str = "mdm"  # mdm | sidm | scdm | bcdm | ar | mtp | mtp-no-latents
    window: str = "all"  # mtp: window W: a number, all, or random (another W in each step)
    mask_rate_a: float = 1.0  # mask ratio ~ Kumaraswamy(a, b); (1, 1) is uniform and gives the ELBO
    mask_rate_b: float = 1.0  # its b; on average (4, 1) masks 4/5 of the cells, (3, 3) 3/5
    uniform_fraction: float = 0.0  # fraction of the batch with a uniform mask ratio (rounded up)
    full_latents_fraction: float = 0.5  # bcdm: trained with all other masked cells as latents
    # the model
    width: int = 128  # embedding width
    depth: int = 4  # transformer blocks
    heads: int = 4  # attention heads
    loops: int = 1  # passes over the blocks, with the same weights: depth by recurrence
    qk_norm: bool = False  # normalise queries and keys, which bounds the attention scores
    embedding_std: float = 0.5  # standard deviation of initial embeddings; 0.02 learns too slowly
    init: str = ""  # start a new run from the weights of this checkpoint
    # the recipe
    deep_supervision: int = 0  # N: also score the readings after every N-th block; 0: off
    optimizer: str = "adamw"  # adamw, or muon (for matrices of the blocks; AdamW for the rest)
    learning_rate: float = 1e-3  # peak learning rate of AdamW
    muon_learning_rate: float = 2e-3  # peak learning rate of Muon (RMS-matched to AdamW)
    weight_decay: float = 0.0  # decoupled weight decay, matrices of the blocks only
    beta2: float = 0.95  # AdamW's second-moment decay
    batch_size: int = 256  # sequences per step
    grad_accum_steps: int = 1  # micro-batches per step: the same step in less memory
    max_steps: int = 1000  # optimiser steps
    max_seconds: float = 0.0  # stop after this much training (0: no limit); the decay follows it
    stop_at_solved: float = 0.0  # stop once an evaluation solves this fraction (0: never)
    warmup_steps: int = 50  # linear warm-up
    decay_fraction: float = 0.4  # linear decay to 0 over this last fraction of the run
    grad_clip: float = 1.0  # largest gradient norm
    compile: bool = False  # torch.compile and a CUDA graph of the step (CUDA presets)
    # bookkeeping
    seed: int = 0  # of weights, data and masks; evaluation has seeds of its own
    device: str = "auto"  # auto | cpu | cuda | mps
    out: str = "out/run"  # folder for ckpt.pt and log.csv
    log_every_steps: int = 50  # steps per row of log.csv
    eval_every_steps: int = 500  # decode, compute the held-out loss; also at the end (0: only then)
    eval_samples: int = 256  # samples per evaluation
    checkpoint_every_steps: int = 500  # also at the end, on Ctrl-C and on SIGTERM


PRESETS = {  # a preset overrides the defaults above; flags override the preset
    "demo": dict(
        task="star", arms=2, path_len=4, labels=7, width=96, depth=3, heads=4, batch_size=256,
        embedding_std=1.0, optimizer="muon", learning_rate=3e-3, muon_learning_rate=4e-3,
        decay_fraction=0.0, max_steps=600, eval_every_steps=50, eval_samples=256),
    "sudoku4": dict(
        task="sudoku-gen", board_size=4, train_size=288, width=64, depth=3, batch_size=256,
        max_steps=2000, learning_rate=3e-3),
    "sudoku6": dict(
        task="sudoku-gen", board_size=6, train_size=20000, width=256, depth=12, heads=4,
        batch_size=1024, learning_rate=1e-3, max_steps=100000, max_seconds=52.0, compile=True,
        eval_every_steps=0, eval_samples=512),
    "sudoku9-gen": dict(
        task="sudoku-gen", board_size=9, train_size=20000, width=256, depth=12, heads=8,
        mask_rate_a=3.0, mask_rate_b=3.0, batch_size=256, qk_norm=True, deep_supervision=3,
        optimizer="muon", muon_learning_rate=1e-3, decay_fraction=0.8, max_steps=100000,
        max_seconds=120.0, compile=True, eval_every_steps=3000, eval_samples=1000),
    "sudoku9": dict(
        task="sudoku", board_size=9, train_size=200000, width=256, depth=12, heads=8,
        minimal_fraction=0.0, mask_rate_a=4.0, uniform_fraction=1 / 16, batch_size=512,
        max_steps=100000, max_seconds=88.0, decay_fraction=0.8, compile=True,
        eval_every_steps=0, eval_samples=1000),
    "sudoku9-cpu": dict(
        task="sudoku", board_size=9, train_size=20000, width=96, depth=6, heads=3, batch_size=32,
        minimal_fraction=0.0, mask_rate_a=4.0, uniform_fraction=1 / 16, optimizer="muon",
        decay_fraction=0.8, max_steps=6000, eval_samples=100, eval_every_steps=1000),
    "star": dict(
        task="star", arms=2, path_len=5, labels=50, width=256, depth=6, heads=8, batch_size=4096,
        embedding_std=1.0, decay_fraction=0.1, max_steps=100000, max_seconds=30.0, compile=True,
        eval_every_steps=500, eval_samples=1000),
    "planning": dict(
        task="planning", labels=11, train_size=50000, width=256, depth=6, heads=8, batch_size=256,
        weight_decay=0.1, max_steps=100000, max_seconds=15.0, compile=True, eval_every_steps=1000,
        eval_samples=1000),
}

# --------------------------------------------------------------------------------------------------
# Legal values, of flags and of the config of a checkpoint

CHOICES = {"task": TASKS, "layout": ("inplace", "prompt"), "objective": OBJECTIVES,
           "optimizer": ("adamw", "muon"), "device": DEVICES}
PATHS = ("train_file", "data_dir", "init", "out")
SMALL = 1e-9  # "more than 0"
RANGES = {  # smallest and largest legal value
    "board_size": (0, 9), "minimal_fraction": (0, 1), "arms": (2, 64), "path_len": (2, 256),
    "labels": (1, 4096), "train_size": (0, 100_000_000), "width": (1, 16384), "depth": (1, 256),
    "heads": (1, 1024), "loops": (1, 64), "deep_supervision": (0, 256),
    "embedding_std": (SMALL, 100), "learning_rate": (SMALL, 100), "mask_rate_a": (0.1, 100),
    "mask_rate_b": (0.1, 100), "uniform_fraction": (0, 1), "full_latents_fraction": (0, 1),
    "muon_learning_rate": (SMALL, 100), "weight_decay": (0, 100), "beta2": (0, 0.99999),
    "batch_size": (1, 10_000_000), "grad_accum_steps": (1, 1_000_000),
    "max_steps": (1, 10**9), "max_seconds": (0, 10**9), "stop_at_solved": (0, 1),
    "warmup_steps": (0, 10**9), "decay_fraction": (0, 1), "grad_clip": (SMALL, 10**9),
    "seed": (0, 2**32), "log_every_steps": (1, 10**9), "eval_every_steps": (0, 10**9),
    "eval_samples": (1, 1_000_000), "checkpoint_every_steps": (1, 10**9),
}
# fields that may change when a run is resumed
MAY_CHANGE = {"max_steps", "max_seconds", "stop_at_solved", "device", "compile", "data_dir", "out",
              "log_every_steps", "eval_every_steps", "eval_samples", "checkpoint_every_steps"}
DIFFUSION = tuple(name for name, rule in OBJECTIVES.items() if not rule.left_to_right)
# {field that only some runs read: (the field that decides, its values)}; refused for other runs
MEANS_SOMETHING_FOR = {
    "window": ("objective", ("mtp", "mtp-no-latents")),
    "board_size": ("task", ("sudoku-gen", "sudoku")),
    "mask_rate_a": ("objective", DIFFUSION), "mask_rate_b": ("objective", DIFFUSION),
    "uniform_fraction": ("objective", DIFFUSION), "full_latents_fraction": ("objective", ("bcdm",)),
    "layout": ("task", ("sudoku",)), "minimal_fraction": ("task", ("sudoku",)),
    "train_file": ("task", ("sudoku",)), "arms": ("task", ("star",)),
    "path_len": ("task", ("star",)), "labels": ("task", ("star", "planning")),
    "muon_learning_rate": ("optimizer", ("muon",)),
}


def check(config):
    """Raises BadInput, "FIELD VALUE ...", for a config that cannot be trained or sampled from."""
    for f in fields(Config):
        check_field(f, getattr(config, f.name))
    if config.width % config.heads:
        raise BadInput(f"--width {config.width} is not a multiple of --heads {config.heads}")
    if config.batch_size % config.grad_accum_steps:
        raise BadInput(f"--batch-size {config.batch_size} is not a multiple of "
                       f"--grad-accum-steps {config.grad_accum_steps}")
    next_token = OBJECTIVES[config.objective].next_token
    if config.task == "sudoku" and config.layout == "inplace" and next_token:
        raise BadInput(f"objective {config.objective} reads from left to right and cannot see "
                       "givens to the right; give --layout prompt")
    blocks = config.depth * config.loops
    if config.deep_supervision >= blocks:
        raise BadInput(f"--deep-supervision {config.deep_supervision} reads nothing before the "
                       f"last of {blocks} blocks, which is always scored; give less, or 0")
    params = 12 * config.depth * config.width ** 2
    if params > 4e9:
        raise BadInput(f"--width {config.width} and --depth {config.depth} make a model of "
                       f"{params:.0e} parameters; lower one of them")


def check_asked(config, flags):
    """flags: dict of the given fields. Raises BadInput for those that this run does not read."""
    for flag, (field, values) in MEANS_SOMETHING_FOR.items():
        if flag in flags and getattr(config, field) not in values:
            raise BadInput(f"--{flag.replace('_', '-')} has no meaning for {field} "
                           f"{getattr(config, field)}; it is for {field} {' or '.join(values)}")


def check_field(field, value):
    """Raises BadInput for a value of the wrong type or out of range."""
    flag, name = "--" + field.name.replace("_", "-"), field.name
    kind = (int, float) if field.type is float else field.type
    if not isinstance(value, kind) or isinstance(value, bool) and field.type is not bool:
        raise BadInput(f"{flag} is of type {type(value).__name__}, not {field.type.__name__}")
    if isinstance(value, int) and abs(value) > 10**18:
        value = math.inf if value > 0 else -math.inf  # Python cannot print very long numbers
    shown = printable(repr(value))
    if name in CHOICES and value not in CHOICES[name]:
        raise BadInput(f"{flag} {shown} is unknown; legal: {', '.join(CHOICES[name])}")
    if name == "window" and not is_window(value):
        raise BadInput(f"{flag} {shown} is not an integer >= 1, all or random")
    if name in RANGES:
        low, high = RANGES[name]
        if not low <= value <= high or not math.isfinite(value):
            raise BadInput(f"{flag} {shown} is out of range; legal: {low} to {high}")
    if name in PATHS and not is_path(value):
        raise BadInput(f"{flag} {shown} cannot be the name of a file")


def is_window(text):
    if text in ("all", "random"):
        return True
    return text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1


def is_path(text):
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def from_checkpoint(saved, file):
    """The config dict of a checkpoint -> Config. Raises BadInput if it is not legal."""
    if not isinstance(saved, dict):
        raise BadInput(f"checkpoint {file} contains no config; it is not from train.py")
    names = [f.name for f in fields(Config)]
    lacking = [n for n in names if n not in saved]
    unknown = [str(n) for n in saved if n not in names]
    for what, found in (("lacks", lacking), ("has an unknown", unknown)):
        if found:
            raise BadInput(f"checkpoint {file}: its config {what} field {printable(found[0])}; "
                           "it is damaged or of another version of the program")
    config = Config(**saved)
    config.data_dir = config.data_dir or CACHE  # published checkpoints have no data_dir
    try:
        check(config)
    except BadInput as e:
        raise BadInput(f"checkpoint {file}: its config is not legal: {e}") from None
    return config


def check_same_run(saved, asked, file):
    """saved: Config, asked: dict. Raises BadInput for a value that may not change."""
    for name, value in asked.items():
        before = getattr(saved, name)
        if name not in MAY_CHANGE and value != before:
            raise BadInput(f"--{name.replace('_', '-')} {printable(value)} differs from "
                           f"{printable(repr(before))} in {printable(file, 200)}; "
                           "start a new --out, or drop the flag")
