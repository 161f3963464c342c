"""Command lines: one clear line per mistake, exit codes, numbers with bounds, the device.

    exit codes   0 done   2 a mistake in the input   130 Ctrl-C   143 SIGTERM
"""
import argparse
import contextlib
import difflib
import inspect
import math
import os
import re
import signal
import sys
from dataclasses import fields

import torch

from config import CHOICES, DEVICES, PATHS, RANGES, Config
from errors import BadInput, Stopped, printable, say
from objectives import ALL

# programs import these from here
__all__ = ["ALL", "DEVICES", "BadInput", "Stopped", "printable", "say"]

# --------------------------------------------------------------------------------------------------
# Arguments

# {our flag, or what to do instead: names that other programs and older versions use}. Several flags
# may match: a hint is for the programs that have its flag, and the first one is shown.
OTHER_NAMES = {
    "--learning-rate": "--lr",
    "--batch-size": "--bs",
    "--max-steps": "--steps --iters --max-iters",
    "--max-steps (training is counted in steps)": "--epochs --num-epochs",
    "--depth": "--layers --n-layer --num-layers",
    "--heads": "--n-head --num-heads",
    "--width": "--n-embd --hidden-size",
    "--train-file FILE": "--data --dataset --train-data",
    "--puzzles FILE": "--data --dataset --input",
    "--out DIR": "--output --output-dir --out-dir",
    "--answers FILE": "--output",
    "--ckpt FILE": "--checkpoint --model",
    "--init FILE (to start from its weights)": "--checkpoint",
    "--preset NAME": "--model",
    "--resume (with the run's --out)": "--resume-from --resume-from-checkpoint",
    "--grad-accum-steps": "--gradient-accumulation-steps --grad-accum --accumulate",
    "--minimal-fraction": "--minimal-share",
    "--uniform-fraction": "--uniform-share",
    "--decoder-param": "--knob",
    "--device cuda": "--gpu",
    "--device cpu": "--cpu",
    "--num": "--num-samples",
    "--tokens-per-step": "--steps-per-token",
    "it was removed: it solved less (LOG.md)": "--relu-squared",
    "every loss is in OUT/log.csv, which any plotting program reads": "--wandb --tensorboard",
    "progress is on stderr": "--verbose",
    "redirect stderr with 2>/dev/null": "--quiet",
}


class Parser(argparse.ArgumentParser):
    """argparse with one clear line per mistake, and the nearest legal flag or value."""

    def __init__(self, description, **kw):
        # python -OO removes docstrings
        first_line = (description or "").split("\n")[0]
        super().__init__(description=first_line, allow_abbrev=False, **kw)

    def parse_args(self, argv=None):
        args, unknown = self.parse_known_args(argv)
        if unknown:
            raise BadInput(f"unknown argument {printable(unknown[0])}; {self._hint(unknown[0])}")
        return args

    def _hint(self, word):
        """A flag of this program with the same meaning, or one with a similar spelling."""
        flag, name = word.split("=")[0], word.split("=")[0].strip("-")
        flags = [f for a in self._actions for f in a.option_strings if f not in ("-h", "--help")]
        for hint in (hint for hint, names in OTHER_NAMES.items() if flag in names.split()):
            if not hint.startswith("--"):
                return hint
            if hint.split()[0] in flags:
                return f"the flag is {hint}"
        near = difflib.get_close_matches(name, [f.strip("-") for f in flags], 1, 0.78)
        longer = [f.strip("-") for f in flags if f.startswith(f"--{name}")]
        if not near and len(longer) == 1 and len(name) > 2:
            near = longer
        return f"did you mean --{near[0]}?" if near else "--help lists the legal ones"

    def _check_value(self, action, value):
        if action.choices is None or value in action.choices:
            return
        legal = [str(c) for c in action.choices]
        near = difflib.get_close_matches(str(value), legal, 1, 0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        flag = action.option_strings[0]
        raise BadInput(f"{flag} '{printable(value)}' is unknown; {hint}legal: {', '.join(legal)}")

    def error(self, message):
        raise BadInput(printable(message, 300))


def number(low, high=math.inf, all_=False, kind=int):
    """argparse type: a finite number from `low` to `high`; with all_ also the word all."""
    what = ("an integer" if kind is int else "a number")
    what += f" >= {low}" if high == math.inf else f" from {low} to {high}"
    what += " or the word all" if all_ else ""

    def parse(text):
        if all_ and text == "all":
            return ALL
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high or value == math.inf:
            raise argparse.ArgumentTypeError(f"'{printable(text)}' is not {what}")
        return value

    return parse


def path(text):
    """argparse type: the path of a file or folder, not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"'{printable(text)}' is not a path")
    return text


def add_config_flags(parser):
    """Add a flag for each field of Config. Flags that are not given are absent from the result."""
    # {field: its comment in the dataclass}
    comments = dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(Config), re.M))
    for f in fields(Config):
        how = {"help": f"{comments[f.name]} (default: {f.default})".replace("%", "%%"),
               "default": argparse.SUPPRESS}
        if f.type is bool:
            how["action"] = argparse.BooleanOptionalAction
        elif f.name in CHOICES:
            how["choices"] = list(CHOICES[f.name])
        elif f.name in RANGES:
            how["type"] = number(*RANGES[f.name], kind=f.type)
        else:
            how["type"] = path if f.name in PATHS else str
        parser.add_argument("--" + f.name.replace("_", "-"), **how)


# --------------------------------------------------------------------------------------------------
# Running a program


def run(main, argv=None):
    """Call main(argv) -> exit code. Mistakes of the user and signals print one line each."""
    program = os.path.basename(sys.argv[0]) or "nanolatent"
    _mend_streams()
    before = {s: signal.signal(s, _raise) for s in (signal.SIGINT, signal.SIGTERM)}
    code, why = 2, ""
    try:
        code = main(argv) or 0
        sys.stdout.flush()
    except SystemExit as e:  # argparse after --help
        code = e.code or 0
    except BadInput as e:
        why = str(e)
    except Stopped:
        code, why = 143, "stopped by SIGTERM"
    except KeyboardInterrupt:
        code, why = 130, "stopped by Ctrl-C"
    except BrokenPipeError:  # the reader has closed the pipe: | head
        code = 0
        _forget_output()
    except OSError as e:
        why = f"{printable(e.filename or 'output')}: {e.strerror}"
    except (MemoryError, RuntimeError) as e:
        if not _is_lack_of_memory(e):
            raise
        why = ("out of memory; lower --batch-size or raise --grad-accum-steps (training), "
               "lower --num (sampling)")
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
    try:
        if why:
            say(f"{program}: {why}")
        sys.stdout.flush()
    except OSError:
        _forget_output()
    return code


def end(code):
    """Exit. The program has done its work, so signals do not change the exit code any more."""
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, signal.SIG_IGN)
    if "WORLD_SIZE" in os.environ:  # a gloo thread may still be running: it would abort sys.exit()
        os._exit(code)
    sys.exit(code)


def _mend_streams():
    """Replace closed streams by /dev/null; escape characters that a stream cannot encode.

    /dev/null takes the file number of the closed stream, which a checkpoint could get otherwise.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        with contextlib.suppress(AttributeError):  # the stream of a test or notebook
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _is_lack_of_memory(error):
    """torch has an exception class for GPU memory, but none for CPU memory."""
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text


@contextlib.contextmanager
def stop_when_asked():
    """Yields a list, to which the first Ctrl-C or SIGTERM is appended; a second one raises."""
    asked = []

    def handler(signum, frame):
        asked.append(signum)
        signal.signal(signum, _raise)

    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for s, old in before.items():
            signal.signal(s, old)


def _raise(signum, frame):
    raise Stopped if signum == signal.SIGTERM else KeyboardInterrupt


def _forget_output():
    """Redirect stdout and stderr to /dev/null, so that flushing them at exit cannot fail."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nothing, stream.fileno())


def choose_device(name):
    """'auto', 'cpu', 'cuda' or 'mps' -> device, autocast context, a sentence that explains both.

    Raises BadInput for a device that this machine does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(name, True):
        raise BadInput(f"--device {name} was given, but torch finds no such device; "
                       "use --device auto or cpu")
    kind = name
    if name == "auto":  # mps is untested, so it is never chosen automatically
        kind = "cuda" if available["cuda"] else "cpu"
    device = torch.device(kind)
    if kind == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32
        if torch.cuda.is_bf16_supported(including_emulation=False):
            sentence = f"device {torch.cuda.get_device_name()}, bf16 (the GPU has it)"
            return device, torch.autocast("cuda", torch.bfloat16), sentence
    why = {"cuda": "the GPU has no bf16", "mps": "untested", "cpu": "bf16 is slow on most CPUs"}
    found = " (no GPU found)" if kind == "cpu" and name == "auto" else ""
    return device, contextlib.nullcontext(), f"device {kind}{found}, fp32 ({why[kind]})"
