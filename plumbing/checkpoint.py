"""Checkpoints and logs: written atomically, and checked when they are read.

A checkpoint is a dict {model, optimizer, step, seconds, solved, rng, config, versions}; one for
sampling alone has {model, step, config, versions}.
"""
import csv
import math
import os
import platform
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from config import Config, from_checkpoint
from data import Task, make_task
from errors import BadInput, printable, say
from model import Transformer

# of log.csv
COLUMNS = ("step", "seconds", "loss_nats", "lr_scale", "held_out_nats", "solved", "num")


# --------------------------------------------------------------------------------------------------
# Writing


def replace_file(file, write):
    """write(f) into FILE.tmp, flush to the disk, rename: `file` is the old or the new one, whole.

    Raises OSError or what write() raises, and removes the .tmp.
    """
    temporary = Path(f"{file}.tmp")
    try:
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(file, text):
    """Write a text file as replace_file does. Raises BadInput."""
    if Path(file).is_dir():
        raise BadInput(f"cannot write {printable(file, 200)}: it is a directory")
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, lambda f: f.write(text.encode("utf-8")))
    except OSError as e:
        kept = "; the old file is intact" if Path(file).is_file() else ""
        raise BadInput(f"cannot write {printable(file, 200)}: {e.strerror}{kept}") from None


def save_checkpoint(checkpoint, file):
    """Write a checkpoint as replace_file does. Raises BadInput."""
    try:
        replace_file(file, lambda f: torch.save(checkpoint, f))
    except (OSError, RuntimeError) as e:  # torch turns a full disk into a RuntimeError
        why = getattr(e, "strerror", None) or str(e).splitlines()[0]
        kept = "there is no earlier one"
        if Path(file).exists():
            kept = "the previous one is intact; resume from it"
        raise BadInput(f"cannot write checkpoint {printable(file, 200)}: {why}; {kept}") from None


@dataclass
class State:
    """The state of a training run."""
    config: Config
    task: Task
    model: torch.nn.Module
    optimizers: list
    peak_rates: list  # the peak learning rates, one list per optimiser
    generator: torch.Generator  # of data and masks
    device: torch.device
    autocast: object
    ddp_rank: int = 0  # of this process under torchrun
    world_size: int = 1
    step: int = 0
    seconds: float = 0.0
    solved: bool = False  # stop_at_solved was reached

    @property
    def file(self):
        return Path(self.config.out) / "ckpt.pt"

    def time_is_up(self, seconds):
        return 0 < self.config.max_seconds <= seconds

    def has_ended(self):
        reached = self.solved and self.config.stop_at_solved > 0
        return self.step >= self.config.max_steps or self.time_is_up(self.seconds) or reached


def check_finite(losses, step, file):
    """losses: of the steps up to `step`. Raises BadInput that names the first one not finite."""
    for i, value in enumerate(losses, step - len(losses) + 1):
        if not math.isfinite(value):
            kept = f"{file} is the last good checkpoint"
            kept = kept if file.exists() else "no checkpoint was saved before"
            raise BadInput(f"the loss became {value} at step {i}; {kept}; try a lower "
                           "--learning-rate")


def save(state, file):
    """Write the checkpoint of a run. Raises BadInput."""
    save_checkpoint({
        "model": state.model.state_dict(),
        "optimizer": [optimizer.state_dict() for optimizer in state.optimizers],
        "step": state.step, "seconds": state.seconds, "solved": state.solved,
        "rng": state.generator.get_state(), "config": asdict(state.config),
        "versions": {"torch": str(torch.__version__), "python": platform.python_version(),
                     "device": state.device.type, "threads": torch.get_num_threads()}}, file)


# --------------------------------------------------------------------------------------------------
# Reading


def load_checkpoint(file):
    """-> a checkpoint's dict on the CPU, its config a checked Config. Raises BadInput.

    weights_only refuses pickles that run code. All checks are here that need neither a task nor an
    optimiser.
    """
    shown = printable(file, 200)
    if Path(file).exists() and not Path(file).is_file():
        raise BadInput(f"checkpoint {shown} is not a file; give the ckpt.pt in the --out folder")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch also warns about foreign pickles
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"checkpoint {shown} does not exist; "
                       "train one with: python train.py --out DIR") from None
    except Exception as e:  # torch raises many kinds for truncated, foreign and hostile files
        raise BadInput(f"checkpoint {shown} cannot be loaded ({_reason(e)}); "
                       "it is damaged or not from train.py") from None
    needed = {"model", "step", "config", "versions"}
    if not isinstance(checkpoint, dict) or not needed <= checkpoint.keys():
        raise BadInput(f"checkpoint {shown} is a torch file, but not from train.py "
                       f"(it lacks one of {', '.join(sorted(needed))})")
    checkpoint["config"] = from_checkpoint(checkpoint["config"], shown)
    _check_weights(checkpoint["model"], shown)
    _check_progress(checkpoint, shown)
    return checkpoint


def _reason(error):
    text = str(error)
    if "weights_only" in text.lower() or "Unsupported" in text:
        return "it contains code"
    return printable(text.splitlines()[0] if text else type(error).__name__)


def _check_weights(weights, file):
    if not isinstance(weights, dict):
        raise BadInput(f"checkpoint {file}: its model is not a dict of tensors")
    for name, value in weights.items():
        if not isinstance(name, str) or not _is_array(value):
            raise BadInput(f"checkpoint {file}: weight {printable(name)} is not an array of floats")
        if not value.float().isfinite().all():
            raise BadInput(f"checkpoint {file}: weight {printable(name)} contains nan or inf; "
                           "it is damaged, or its training diverged")


def _is_array(value):
    """Is this a dense array of floats? A view that is not contiguous could claim any size."""
    floats = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    return (isinstance(value, torch.Tensor) and value.layout == torch.strided
            and not value.is_nested and value.device.type == "cpu" and value.dtype in floats
            and value.is_contiguous())


def _check_progress(checkpoint, file):
    """Raises BadInput for a part of the wrong type. Checkpoints for sampling have two parts."""
    step, versions = checkpoint["step"], checkpoint["versions"]
    right = {"step": type(step) is int and 0 <= step <= 10**9,
             "versions": isinstance(versions, dict) and all(
                 isinstance(k, str) and type(v) in (str, int) for k, v in versions.items())}
    if "optimizer" in checkpoint:
        seconds, rng = checkpoint.get("seconds"), checkpoint.get("rng")
        right["seconds"] = type(seconds) in (int, float) and 0 <= seconds < math.inf
        right["solved"] = type(checkpoint.get("solved")) is bool
        right["rng"] = isinstance(rng, torch.Tensor) and rng.dtype == torch.uint8
        right["optimizer"] = isinstance(checkpoint["optimizer"], list)
    for name, fine in right.items():
        if not fine:
            raise BadInput(f"checkpoint {file}: its {name} is not legal; the file is damaged")


def build_model(config, task):
    return Transformer(task.V, task.K, task.S, config.width, config.depth, config.heads,
                       config.loops, config.qk_norm)


def model_with(checkpoint, config, task, file):
    """-> config's model (fp32, on the CPU) with the weights of a checkpoint of this or another run.

    Raises BadInput if they do not fit.
    """
    weights = checkpoint["model"]
    for name in ("heads", "qk_norm"):  # they do not change the shapes of the weights
        before, now = getattr(checkpoint["config"], name), getattr(config, name)
        if before != now:
            raise BadInput(f"checkpoint {printable(file, 200)} was trained with {name} = {before}, "
                           f"but this run has {now}; they must be equal")
    with torch.device("meta"):  # compare shapes before memory is allocated
        model = build_model(config, task)
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in weights.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise BadInput(
                f"checkpoint {printable(file, 200)}: weight {printable(name)} has shape "
                f"{found.get(name, 'missing')}, but the config says "
                f"{expected.get(name, 'there is none')}")
    # copies, because two weights of a damaged file may share memory
    copies = {k: v.detach().to(torch.float32, copy=True) for k, v in weights.items()}
    model.load_state_dict(copies, assign=True)
    return model


def load_model(file, device):
    """-> model (fp32, on the device), task, Config. Raises BadInput."""
    checkpoint = load_checkpoint(file)
    config = checkpoint["config"]
    task = make_task(config)
    return model_with(checkpoint, config, task, file).to(device), task, config


# --------------------------------------------------------------------------------------------------
# Resuming a run


def restore(state, saved, file):
    """Load all of a checkpoint but its weights into a run. Raises BadInput if it does not fit."""
    file, versions = printable(file, 200), saved["versions"]
    if "optimizer" not in saved:
        raise BadInput(f"{file} contains weights only; a run cannot be resumed from it, but a new "
                       f"one can start from it: --init {file}")
    parts = saved["optimizer"]
    if len(parts) != len(state.optimizers) or not all(
            _fits(optimizer, part) for optimizer, part in zip(state.optimizers, parts)):
        raise BadInput(f"checkpoint {file}: its optimizer does not fit; it is damaged; start a new "
                       f"--out with --init {file}")
    for optimizer, part in zip(state.optimizers, parts):
        groups = optimizer.state_dict()["param_groups"]  # learning rates come from the config
        optimizer.load_state_dict({"state": part["state"], "param_groups": groups})
    state.step, state.seconds = saved["step"], saved["seconds"]
    enough = saved["config"].stop_at_solved >= state.config.stop_at_solved
    state.solved = saved["solved"] and enough  # --stop-at-solved may be higher now
    if versions.get("device") != state.device.type:  # random streams differ between devices
        state.generator.manual_seed(state.config.seed + state.step)
        say(f"the checkpoint is from device {printable(versions.get('device'))}: "
            "data and masks continue with a new random stream")
        return
    try:
        state.generator.set_state(saved["rng"])
    except (RuntimeError, TypeError):
        raise BadInput(f"checkpoint {file}: its rng is not a state of a generator; it is damaged; "
                       f"start a new --out with --init {file}") from None
    threads = torch.get_num_threads()
    if versions.get("threads", threads) != threads:
        say(f"the checkpoint was made with {printable(versions['threads'])} threads, this run has "
            f"{threads}: rounding differs, so the result is not bit-equal to an uninterrupted run")


def _fits(optimizer, part):
    """Does a saved state have what this optimiser keeps for each of its weights?"""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    is_muon = isinstance(optimizer, torch.optim.Muon)
    names = ("momentum_buffer",) if is_muon else ("step", "exp_avg", "exp_avg_sq")
    if not isinstance(part, dict) or not isinstance(part.get("state"), dict):
        return False
    if not part["state"]:  # saved before the first step
        return True
    if part["state"].keys() != set(range(len(weights))):
        return False
    for i, p in enumerate(weights):
        values, shapes = part["state"][i], {n: () if n == "step" else p.shape for n in names}
        if not isinstance(values, dict) or not all(map(_is_array, values.values())):
            return False
        if {name: value.shape for name, value in values.items()} != shapes:
            return False
        if not all(value.isfinite().all() for value in values.values()):
            return False
    return True


# --------------------------------------------------------------------------------------------------
# The folder of a run


def check_out(config, resume):
    """Raises BadInput if OUT has a run that would be lost. Writes nothing."""
    out = Path(config.out)
    has_checkpoint, has_log = (out / "ckpt.pt").exists(), (out / "log.csv").exists()
    if has_checkpoint and not resume:
        raise BadInput(f"{printable(out, 200)} already holds a checkpoint; "
                       "give --resume to continue, or another --out")
    if has_log and not has_checkpoint and not resume:
        raise BadInput(f"{printable(out, 200)} holds a log.csv without a checkpoint; move it, give "
                       "another --out, or --resume to keep it as log.csv.old and start over")
    if has_checkpoint and has_log:
        _rows_until(out / "log.csv", 0)


def open_out(config, step):
    """Make OUT and open log.csv to append after the row of `step` -> file. Raises BadInput."""
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        log, rows = out / "log.csv", []
        if log.exists() and (out / "ckpt.pt").exists():
            rows = _rows_until(log, step)
        elif log.exists():
            say(f"{log} has no checkpoint; it is kept as {_set_aside(log)}")
        text = ",".join(COLUMNS) + "\n" + "".join(rows)
        replace_file(log, lambda f: f.write(text.encode("utf-8")))
        return open(log, "a", newline="", encoding="utf-8")
    except OSError as e:
        raise BadInput(f"--out {printable(out, 200)} is not writable ({e.strerror}); "
                       "give another folder") from None


def _set_aside(file):
    """Rename a file to FILE.old, FILE.old2, ... -> the new name."""
    name, n = f"{file.name}.old", 1
    while (file.parent / name).exists():
        n += 1
        name = f"{file.name}.old{n}"
    file.rename(file.parent / name)
    return name


def _rows_until(file, step):
    """The rows of log.csv up to `step`: a resumed run computes the later ones again."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    if not lines or lines[0].strip() != ",".join(COLUMNS):
        raise BadInput(f"{printable(file, 200)} is not a log of this version of the program; "
                       "move it")
    kept = []
    for line in lines[1:]:
        first = line.split(",")[0]
        is_number = first.isascii() and first.isdecimal() and len(first) < 12
        if line.endswith("\n") and is_number and int(first) <= step:
            kept.append(line)
    return kept


def read_log(file):
    """log.csv -> a list of dicts of str. Raises BadInput."""
    try:
        with open(file, encoding="utf-8", newline="") as f:
            return list(csv.DictReader(f))
    except (OSError, ValueError, csv.Error) as e:
        raise BadInput(f"cannot read log {printable(file, 200)}: {printable(e)}") from None
