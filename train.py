"""Training: config, presets, optimiser, loop, evaluation, checkpoint, resume.

    B batch   S positions in the task   W window

    python train.py --preset sudoku4 --objective scdm --out out/s4      # train
    python train.py --out out/s4 --resume                               # go on after Ctrl-C, kill or power cut
    torchrun --nproc-per-node 2 train.py --preset sudoku9 --out out/s9  # the same batches on two GPUs

OUT holds two files: ckpt.pt (model, optimizer, step, rng, config, versions; written as ckpt.pt.tmp and
renamed, so that a crash at any moment leaves a whole one) and log.csv.
"""
import argparse
import csv
import inspect
import math
import os
import platform
import re
import signal
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from tqdm import tqdm

import data
import diffusion
import mtp
from data import BadInput, make_task
from sample import DEVICES, OBJECTIVES, Parser, build_model, choose_device, evaluate, load_checkpoint, make_dials, number, run

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # torchrun says which process of how many this is
CACHE = str(Path(__file__).parent / "data" / "cache")


@dataclass
class Config:  # the comments are the --help
    # the task
    task: str = "sudoku-gen"  # sudoku-gen | sudoku | star | planning
    board_size: int = 0  # sudoku-gen: side of the board, 4, 6 or 9; 0: 4 for sudoku-gen, 9 for sudoku
    arms: int = 2  # star: number of arms d
    path_len: int = 4  # star: nodes on each arm l, counted with the start
    labels: int = 50  # star, planning: how many node names there are
    train_size: int = 0  # base boards or puzzles (augmented by symmetry), or graphs; 0: 20,000 of them, or fresh graphs every batch
    data_dir: str = CACHE  # where generated data sets are cached
    # the objective
    objective: str = "mdm"  # mdm | sidm | scdm | ar | mtp
    window: str = "all"  # mtp: window W, a number or all, or random (a new W every step, one model for every window)
    # the model
    width: int = 128  # embedding width
    depth: int = 4  # transformer blocks
    heads: int = 4  # attention heads
    embedding_std: float = 0.5  # initial standard deviation of the embeddings; with 0.02 little is learned in a minute
    # the recipe
    optimizer: str = "adamw"  # adamw, or muon (for the matrices of the blocks; the rest stays with AdamW)
    learning_rate: float = 1e-3  # peak learning rate of AdamW
    muon_learning_rate: float = 2e-3  # peak learning rate of Muon (RMS-matched to AdamW)
    weight_decay: float = 0.0  # decoupled weight decay, matrices of the blocks only
    beta2: float = 0.95  # AdamW's second-moment decay
    batch_size: int = 256  # sequences per step
    max_steps: int = 1000  # optimiser steps
    max_seconds: float = 0.0  # stop after this much training time, evaluation apart (0: no limit); the decay follows it
    stop_at_solved: float = 0.0  # stop once an evaluation solves this share (0: never)
    warmup_steps: int = 50  # linear warm-up
    decay_fraction: float = 0.4  # linear decay to 0 over this last part of the run
    grad_clip: float = 1.0  # largest gradient norm
    compile: bool = False  # torch.compile the training forward (CUDA presets)
    # bookkeeping
    seed: int = 0  # of weights, data and masks; evaluation has streams of its own
    device: str = "auto"  # auto | cpu | cuda | mps
    out: str = "out/run"  # folder for ckpt.pt and log.csv
    log_every_steps: int = 50  # one row of log.csv
    eval_every_steps: int = 500  # decode eval_samples and log solved (also at the end); 0 means only at the end
    eval_samples: int = 256  # samples per evaluation
    checkpoint_every_steps: int = 500  # also at the end and at Ctrl-C


PRESETS = {  # a preset overrides the defaults above; flags override the preset
    "demo": dict(task="star", arms=2, path_len=4, labels=7, width=96, depth=3, heads=4, batch_size=64, embedding_std=1.0, optimizer="muon",
                 learning_rate=3e-3, muon_learning_rate=4e-3, decay_fraction=0.0, max_steps=2000, eval_every_steps=100, eval_samples=256),
    "sudoku4": dict(task="sudoku-gen", board_size=4, train_size=288, width=64, depth=3, batch_size=256, max_steps=2000,
                    learning_rate=3e-3),
    "sudoku6": dict(task="sudoku-gen", board_size=6, train_size=20000, width=256, depth=12, heads=4, batch_size=1024,
                    learning_rate=1e-3, max_steps=100000, max_seconds=52.0, compile=True, eval_every_steps=0, eval_samples=512),
    "sudoku9-gen": dict(task="sudoku-gen", board_size=9, train_size=20000, width=512, depth=6, heads=8, batch_size=512,
                        optimizer="muon", max_steps=20000, compile=True, eval_every_steps=2000, eval_samples=1000),
    "sudoku9": dict(task="sudoku", board_size=9, train_size=200000, width=512, depth=6, heads=8, batch_size=512,
                    optimizer="muon", max_steps=6000, compile=True, eval_every_steps=1000, eval_samples=1000),
    "sudoku9-cpu": dict(task="sudoku", board_size=9, train_size=20000, width=128, depth=4, heads=4, batch_size=32,
                        optimizer="muon", max_steps=1500, eval_samples=100, eval_every_steps=500),
    "star": dict(task="star", arms=2, path_len=5, labels=50, width=256, depth=6, heads=8, batch_size=4096, embedding_std=1.0,
                 decay_fraction=0.1, max_steps=100000, max_seconds=30.0, compile=True, eval_every_steps=500, eval_samples=1000),
    "planning": dict(task="planning", labels=11, train_size=50000, width=256, depth=6, heads=8, batch_size=256, weight_decay=0.1,
                     max_steps=100000, max_seconds=15.0, compile=True, eval_every_steps=1000, eval_samples=1000),
}
# What may change when a run is resumed; anything else would be another run.
MAY_CHANGE = {"max_steps", "max_seconds", "stop_at_solved", "device", "compile", "data_dir", "out", "log_every_steps", "eval_every_steps",
              "eval_samples", "checkpoint_every_steps"}
# Flags that only some tasks, objectives or optimisers read: asking for them elsewhere is a mistake, not a wish.
MEANS_SOMETHING_FOR = {"window": ("objective", ("mtp",)), "board_size": ("task", ("sudoku-gen", "sudoku")), "arms": ("task", ("star",)),
                       "path_len": ("task", ("star",)), "labels": ("task", ("star", "planning")), "muon_learning_rate": ("optimizer", ("muon",))}
CHOICES = {"task": data.TASKS, "objective": OBJECTIVES, "optimizer": ("adamw", "muon"), "device": DEVICES}


def window(text):
    if text not in ("all", "random") and (not text.isdecimal() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1, all or random")
    return text


def parse_config(argv):
    """Command line -> Config, resume flag, names that were asked for. Defaults < preset < flags."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--preset", choices=sorted(PRESETS), help="a set of fields; flags still override it")
    p.add_argument("--resume", action="store_true", help="go on from OUT/ckpt.pt with its config; an empty OUT starts fresh")
    comments = dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(Config), re.M))
    zero_is_fine = {"board_size", "train_size", "max_seconds", "stop_at_solved", "seed", "weight_decay", "warmup_steps", "decay_fraction", "eval_every_steps", "beta2"}
    largest = {"board_size": 9, "stop_at_solved": 1.0, "beta2": 0.99999, "decay_fraction": 1.0, "seed": 2**32}
    for f in fields(Config):
        how = {"help": comments[f.name].replace("%", "%%"), "default": argparse.SUPPRESS}
        if f.type is bool:
            how["action"] = argparse.BooleanOptionalAction
        elif f.name in CHOICES:
            how["choices"] = CHOICES[f.name]
        else:
            low = 0 if f.name in zero_is_fine else 1 if f.type is int else 1e-9
            how["type"] = window if f.name == "window" else str if f.type is str else number(low, largest.get(f.name, math.inf), kind=f.type)
        how["help"] += f" (default: {f.default})"
        p.add_argument("--" + f.name.replace("_", "-"), **how)
    flags = vars(p.parse_args(argv))
    preset, resume = flags.pop("preset"), flags.pop("resume")
    asked = {**PRESETS.get(preset, {}), **flags}
    config = Config(**asked)
    if resume and (Path(config.out) / "ckpt.pt").exists():
        saved = load_checkpoint(Path(config.out) / "ckpt.pt")["config"]
        check_same_run(saved, asked, f"{config.out}/ckpt.pt")
        config = Config(**{**saved, **{k: v for k, v in asked.items() if k in MAY_CHANGE}})
    for flag, (field, values) in MEANS_SOMETHING_FOR.items():
        if flag in flags and getattr(config, field) not in values:
            raise BadInput(f"--{flag.replace('_', '-')} has no meaning for {field} {getattr(config, field)}; it is for {field} {' or '.join(values)}")
    return config, resume


def check_same_run(saved, asked, file):
    """Raises BadInput where a config that is asked for would turn the saved run into another one."""
    for name, value in asked.items():
        if name not in saved:
            raise BadInput(f"{file} was written by another version of the program; start a new --out")
        if name not in MAY_CHANGE and value != saved[name]:
            raise BadInput(f"--{name.replace('_', '-')} {value} differs from {saved[name]!r} in {file}; start a new --out, or drop the flag")


# ---------------------------------------------------------------------------------------------------------
# EDIT HERE: the objective and the optimiser


def training_loss(model, tokens, task, config, generator, shard=slice(None)):
    """The loss of config.objective on clean tokens (B, S), in nats per scored token.

    shard: the samples that count. Whatever is random is drawn for the whole batch, so it does not depend on the shard.
    """
    if config.objective == "ar":
        return mtp.ar_loss(model, tokens[shard], task)
    if config.objective == "mtp":
        return mtp.mtp_loss(model, tokens, task, config.window, generator, shard)
    return diffusion.loss(model, tokens, task, config.objective, generator, shard)


def make_optimizers(model, config, device):
    """AdamW for everything, or Muon for the matrices of the blocks (arXiv 2502.16982) and AdamW for the rest."""
    matrices, rest = list(model.blocks.parameters()), [p for n, p in model.named_parameters() if not n.startswith("blocks")]
    adamw = dict(lr=config.learning_rate, betas=(0.9, config.beta2), fused=device.type == "cuda", capturable=device.type == "cuda")
    if config.optimizer == "muon":
        return [torch.optim.Muon(matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"),
                torch.optim.AdamW(rest, weight_decay=0.0, **adamw)]
    return [torch.optim.AdamW([{"params": matrices, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}], **adamw)]


def lr_scale(step, seconds, config):
    """Linear warm-up, constant, linear decay to 0; progress counts steps or seconds, whichever is further."""
    progress = max(step / config.max_steps, seconds / config.max_seconds if config.max_seconds else 0.0)
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return warmup * (min(1.0, max(0.0, 1 - progress) / config.decay_fraction) if config.decay_fraction else 1.0)


# ---------------------------------------------------------------------------------------------------------
# Plumbing


def save_checkpoint(checkpoint, file):
    """Write beside, flush to the disk, rename: whatever happens, `file` is the old one or the new one. Raises BadInput."""
    temporary = Path(f"{file}.tmp")
    try:
        with open(temporary, "wb") as f:
            torch.save(checkpoint, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, file)
    except (OSError, RuntimeError) as e:  # torch turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        kept = "the checkpoint before it is intact; resume from there" if Path(file).exists() else "there is no earlier one"
        raise BadInput(f"cannot write checkpoint {file}: {getattr(e, 'strerror', None) or str(e).splitlines()[0]}; {kept}") from None


def open_out(config, resume, step):
    """Make OUT, refuse to overwrite a run, and open log.csv behind the row of `step` -> file."""
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / "ckpt.pt").exists() and not resume:
            raise BadInput(f"{out} already holds a checkpoint; give --resume to go on, or another --out")
        rows = []
        if step and (out / "log.csv").exists():  # rows after the checkpoint were computed by a run that then died
            rows = (out / "log.csv").read_text(encoding="utf-8").splitlines(keepends=True)[1:]
            rows = [r for r in rows if r.endswith("\n") and int(r.split(",")[0]) <= step]
        (out / "log.csv.tmp").write_text("step,seconds,loss_nats,lr_scale,solved,num\n" + "".join(rows), encoding="utf-8")
        os.replace(out / "log.csv.tmp", out / "log.csv")
        return open(out / "log.csv", "a", newline="", encoding="utf-8")
    except OSError as e:
        raise BadInput(f"--out {out} is not writable ({e.strerror}); give another folder") from None


def fresh_model(task, config, device):
    """A model with every weight drawn from config.seed, on the device."""
    model = build_model(config, task)
    model.init_weights(torch.Generator().manual_seed(config.seed), config.embedding_std)
    return model.to(device)


WARM_STEPS = 4  # the first steps of a process, which compile the model and record the graph: they train, but are not on the clock


def make_step(model, task, config, device, autocast, generator, optimizers):
    """-> step(scale): one optimiser step at that share of the peak learning rates, returning the loss on the device, because
    reading it at every step would stall a GPU.

    On a GPU with config.compile, forward and backward are compiled, and the whole step, from drawing the data to the update, is
    recorded as one CUDA graph: a model this small otherwise waits for the host to launch its kernels one by one (LOG.md).
    Under torchrun all processes draw the same batch and masks, each takes every world-th sample, and gradients are averaged.
    """
    shard = slice(RANK, None, WORLD)
    params = list(model.parameters())
    before = [torch.empty_like(p) for p in params]
    share = torch.ones((), device=device)
    fast = config.compile and device.type == "cuda" and compiler_works(device)
    forward = torch.compile(model) if fast else model
    if WORLD > 1:
        forward = torch.nn.parallel.DistributedDataParallel(forward)

    def one_step():
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        tokens = task.train_batch(config.batch_size, generator, device)  # (B, S)
        with autocast:
            loss = training_loss(forward, tokens, task, config, generator, shard)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, config.grad_clip)
        with torch.no_grad():
            torch._foreach_copy_(before, params)
            for optimizer in optimizers:
                optimizer.step()
            # An update is linear in its learning rate, and in a recorded graph the rate is fixed. So take the update of
            # the peak rate, then keep only that share of it: before + share * (after - before).
            torch._foreach_sub_(params, before)
            torch._foreach_mul_(params, share)
            torch._foreach_add_(params, before)
        return loss.detach()

    take = Recorded(one_step, generator) if fast and WORLD == 1 else one_step

    def step(scale):
        share.fill_(scale)
        return take()

    return step


class Recorded:
    """A function of no arguments as a CUDA graph: run WARM_STEPS - 1 times (on a stream of its own, as recording needs), then recorded and replayed."""

    def __init__(self, function, generator):
        self.function, self.generator, self.calls = function, generator, 0
        self.stream, self.graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()

    def __call__(self):
        self.calls += 1
        if self.calls < WARM_STEPS:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                result = self.function()
            torch.cuda.current_stream().wait_stream(self.stream)
            return result
        if self.calls == WARM_STEPS:
            self.graph.register_generator_state(self.generator)  # every replay draws new numbers
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.result = self.function()
        self.graph.replay()
        return self.result.clone()  # the next replay overwrites it


def compiler_works(device):
    """Try torch.compile on something tiny. Where there is no compiler the plain model is slower and just as right."""
    torch.compiler.reset()  # after a few models in one process it stops compiling new ones
    try:
        torch.compile(torch.sin)(torch.ones(2, device=device))
        return True
    except Exception as e:  # it raises many kinds
        print(f"torch.compile failed ({str(e).splitlines()[0]}); training without it (--no-compile silences this)", file=sys.stderr)
        return False


def join_processes(config, device):
    """Meet the other processes that torchrun started. Raises BadInput for a config that several cannot train."""
    if config.batch_size % WORLD:
        raise BadInput(f"--batch-size {config.batch_size} is not a multiple of the {WORLD} processes")
    if config.max_seconds:
        raise BadInput("--max-seconds goes by the clock, and processes have a clock each; give --max-seconds 0 and --max-steps")
    if device.type == "cuda":
        if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
            raise BadInput(f"more processes than GPUs, of which this machine has {torch.cuda.device_count()}; lower --nproc-per-node, or give --device cpu")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def summed(values, device):
    """values: a list of numbers -> their sums over all processes, which all have to ask at the same step."""
    if WORLD == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.tolist()


def restore(saved, model, optimizers, generator, config, device):
    """Put a checkpoint back into the model, the optimisers and the generator."""
    model.load_state_dict(saved["model"])
    for optimizer, state in zip(optimizers, saved["optimizer"]):
        optimizer.load_state_dict(state)
    if saved["versions"]["device"] == device.type:
        generator.set_state(saved["rng"])
    else:  # random streams differ between devices
        generator.manual_seed(config.seed + saved["step"])
        print(f"the checkpoint comes from device {saved['versions']['device']}: data and masks go on with a new random stream", file=sys.stderr)


def check_finite(losses, step, file):
    """losses: those of the steps up to `step`. Raises BadInput that names the first one that is not finite."""
    for i, value in enumerate(losses):
        if not math.isfinite(value):
            kept = f"{file} holds the last good checkpoint" if file.exists() else "no checkpoint was saved before it"
            raise BadInput(f"the loss became {value} at step {step - len(losses) + i + 1}; {kept}; try a lower --learning-rate")


def train(config, resume=False):
    """Train config's model; OUT/ckpt.pt and OUT/log.csv are the result.

    Returns the last evaluation's metrics, or None if the run had already ended. Raises BadInput for a bad config, a full
    disk or a loss that is not finite; KeyboardInterrupt after Ctrl-C, with the state saved.
    """
    # 1. device, task, model, optimisers: everything random comes from config.seed
    device, autocast, reason = choose_device(config.device)
    if config.width % config.heads:
        raise BadInput(f"--width {config.width} is not a multiple of --heads {config.heads}")
    if WORLD > 1:
        join_processes(config, device)
    task, file = make_task(config), Path(config.out) / "ckpt.pt"
    saved = load_checkpoint(file) if resume and file.exists() else None
    if saved:
        if "optimizer" not in saved:
            raise BadInput(f"{file} holds weights alone, for sampling; training cannot go on from it")
        check_same_run(saved["config"], asdict(config), file)
    log = open_out(config, resume, saved["step"] if saved else 0) if RANK == 0 else open(os.devnull, "w")  # one process speaks for all
    model = fresh_model(task, config, device)
    if RANK == 0:
        print(f"{task.name} {config.objective}, {model.num_params():,} parameters, {reason}", file=sys.stderr)
    generator = torch.Generator(device).manual_seed(config.seed)
    optimizers = make_optimizers(model, config, device)
    step, seconds, ended = 0, 0.0, False
    if saved:
        restore(saved, model, optimizers, generator, config, device)
        step, seconds = saved["step"], saved["seconds"]
        ended = step >= config.max_steps or 0 < config.max_seconds <= seconds or saved["solved"] and 0 < config.stop_at_solved
    take_step = None if ended else make_step(model, task, config, device, autocast, generator, optimizers)
    prompts, references = task.test_set(config.eval_samples)
    dials = make_dials(config.objective, task, config.window)

    # 2. Ctrl-C asks the loop to stop after the step in hand; a second one stops at once
    interrupted = []

    def on_interrupt(signum, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupted.append(signum)

    signal_before = signal.signal(signal.SIGINT, on_interrupt)
    silent = {"disable": True} if RANK else {}  # disable=False would overrule the variable TQDM_DISABLE
    bar = tqdm(total=config.max_steps, initial=step, desc=f"{task.name} {config.objective}", unit="step", smoothing=0.05, **silent)
    losses, metrics, solved, stopped, clock = [], None, False, False, time.perf_counter()
    unclocked = step + WARM_STEPS if config.compile else step
    try:
        while not ended and not stopped:
            # 3. one step
            scale = lr_scale(step, seconds + time.perf_counter() - clock, config)
            losses.append(take_step(scale))
            step += 1
            bar.update()
            if step <= unclocked:
                losses[-1].item()  # waits for the device
                clock = time.perf_counter()

            # 4. now and then: look at the losses, evaluate, save
            due = [every and step % every == 0 for every in (config.log_every_steps, config.eval_every_steps, config.checkpoint_every_steps)]
            timed_out = 0 < config.max_seconds <= seconds + time.perf_counter() - clock
            if not (any(due) or step == config.max_steps or timed_out or interrupted and WORLD == 1):
                continue
            values = summed(torch.stack(losses).tolist(), device)  # waits for the device
            losses.clear()
            seconds += time.perf_counter() - clock
            check_finite(values, step, file)
            ended, stopped = step >= config.max_steps or timed_out, bool(interrupted)
            row = [step, f"{seconds:.3f}", f"{sum(values) / len(values) / WORLD:.5f}", f"{scale:.4f}", "", ""]
            if (due[1] or ended) and RANK == 0:
                metrics, _ = evaluate(model, task, config.objective, dials, prompts, references, 0, device, autocast, label="evaluating")
                row[4:] = metrics["solved"], metrics["num"]
                solved = 0 < config.stop_at_solved <= metrics["solved_rate"]
                ended |= solved
            ended, stopped = (count > 0 for count in summed([ended, stopped], device))  # the others learn what one knows
            csv.writer(log, lineterminator="\n").writerow(row)
            log.flush()
            bar.set_postfix_str(f"loss {row[2]}" + (f", solved {metrics['solved']}/{metrics['num']}" if metrics else ""))
            if (due[2] or ended or stopped) and RANK == 0:
                save_checkpoint({
                    "model": model.state_dict(), "optimizer": [o.state_dict() for o in optimizers], "step": step, "seconds": seconds, "solved": solved,
                    "rng": generator.get_state(), "config": asdict(config),
                    "versions": {"torch": str(torch.__version__), "python": platform.python_version(), "device": device.type}}, file)
            clock = time.perf_counter()  # evaluation and saving are not training time
    except OSError as e:
        kept = "the last checkpoint is intact" if file.exists() else "nothing was saved"
        raise BadInput(f"cannot write to {config.out}: {e.strerror}; {kept}") from None
    finally:
        signal.signal(signal.SIGINT, signal_before)
        bar.close()
        log.close()
        if WORLD > 1:
            torch.distributed.destroy_process_group()
    if stopped:
        print(f"saved step {step} in {file}; go on with --resume", file=sys.stderr)
        raise KeyboardInterrupt
    return metrics


def main(argv=None):
    config, resume = parse_config(argv)
    metrics = train(config, resume)
    if RANK:
        return
    if metrics is None:
        print(f"{config.out} is already at step {config.max_steps} or its time limit; nothing to do")
        return
    low, high = metrics["interval"]
    print(f"{config.task} {config.objective}: solved {metrics['solved']}/{metrics['num']} = {100 * metrics['solved_rate']:.1f} % "
          f"(95 % interval {100 * low:.1f}-{100 * high:.1f}); {config.out}/ckpt.pt")


if __name__ == "__main__":
    code = run(main)
    if WORLD > 1:  # a gloo thread may still be letting go of its last tensor, and would abort an interpreter that winds down
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
