"""Training: the optimiser step, the loop, evaluation, stopping and going on.

    B batch   S positions in the task   W window   scale: share of the peak learning rate, 0..1

    python train.py --preset sudoku4 --objective scdm --out out/s4      # train
    python train.py --out out/s4 --resume                               # go on after Ctrl-C or kill
    torchrun --nproc-per-node 2 train.py --preset sudoku9 --out out/s9  # same batches on two GPUs

OUT holds two files: ckpt.pt, which is whole at any moment, and log.csv. What can be chosen is in
config.py; what an objective is, in objectives.py.
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import csv
import math
import os
import signal
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

import config as configuration
from config import MAY_CHANGE, PRESETS, Config
from data import Task, make_task
from diffusion import UNIFORM, supervise
from objectives import OBJECTIVES, make_dials
from plumbing.checkpoint import (build_model, check_out, load_checkpoint, model_with, open_out,
                                 restore, save)
from plumbing.cli import (BadInput, Parser, Stopped, choose_device, end, printable, run, say,
                          stop_when_asked)
from plumbing.fast import (WARM_STEPS, compiler_works, join_processes, processes, recorded_step,
                           summed)
from plumbing.muon import BatchedMuon
from sample import evaluate

# --------------------------------------------------------------------------------------------------
# EDIT HERE: the loss, the optimiser and the step


def draw_hidden(batch, task, config, generator, rates=UNIFORM):
    """What is hidden of a batch -> turn (B, A), W. For the whole batch, whoever computes it."""
    tokens, given = batch
    hide = OBJECTIVES[config.objective].hide
    return hide(len(tokens), task.A, config.window, generator, tokens.device, given, rates)


def training_loss(model, batch, hidden, task, config, shard=slice(None)):
    """The loss of config.objective, in nats per scored token.

    batch: tokens (B, S), given; hidden: from draw_hidden(). shard: the samples that count here.
    With config.deep_supervision its gradient holds more than its value does.
    """
    (tokens, _), (turn, W) = batch, hidden
    rule = OBJECTIVES[config.objective]

    def nats(model):
        return rule.nats(model, tokens[shard], turn[shard], W, task, rule.ranks).mean()

    every = config.deep_supervision
    return supervise(nats, model, every) if every else nats(model)


def make_optimizers(model, config, device):
    """AdamW for everything, or Muon for the matrices of the blocks (arXiv 2502.16982)."""
    matrices = list(model.blocks.parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith("blocks")]
    gpu = device.type == "cuda"
    adamw = dict(lr=config.learning_rate, betas=(0.9, config.beta2), fused=gpu, capturable=gpu)
    if config.optimizer == "muon":
        muon = BatchedMuon(matrices, lr=config.muon_learning_rate,
                           weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
        return [muon, torch.optim.AdamW(rest, weight_decay=0.0, **adamw)]
    groups = [{"params": matrices, "weight_decay": config.weight_decay},
              {"params": rest, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, **adamw)]


def lr_scale(step, seconds, config):
    """Linear warm-up, constant, linear decay to 0. Progress: steps or seconds, what is further."""
    progress = step / config.max_steps
    if config.max_seconds:
        progress = max(progress, seconds / config.max_seconds)
    scale = 1.0
    if config.warmup_steps:
        scale = min(1.0, (step + 1) / config.warmup_steps)
    if config.decay_fraction:
        scale *= min(1.0, max(0.0, 1 - progress) / config.decay_fraction)
    return scale


def make_step(state):
    """-> step(scale): one optimiser step, returning the loss on the device.

    Reading the loss at every step would stall a GPU. With several processes or micro-batches all
    draw the same batch and masks, each computes a share of the samples, and gradients are averaged.
    """
    config, task, generator = state.config, state.task, state.generator
    params = list(state.model.parameters())
    fast = config.compile and state.device.type == "cuda" and compiler_works(state.device)
    forward = torch.compile(state.model) if fast else state.model
    if state.processes > 1:
        forward = torch.nn.parallel.DistributedDataParallel(forward)
    parts = config.accumulate * state.processes
    rates = (config.mask_rate_a, config.mask_rate_b, config.uniform_share)

    def forward_backward():
        batch = task.train_batch(config.batch_size, generator, state.device)  # tokens (B, S), given
        hidden = draw_hidden(batch, task, config, generator, rates)  # turn (B, A), W
        total = 0.0
        for part in range(state.process, parts, state.processes):
            with state.autocast:
                loss = training_loss(forward, batch, hidden, task, config, slice(part, None, parts))
            (loss / config.accumulate).backward()
            total += loss.detach() / config.accumulate
        return total

    if fast and state.processes == 1:  # the same step, recorded and replayed on the GPU
        return recorded_step(forward_backward, params, state.optimizers, generator,
                             config.grad_clip, state.device)

    def step(scale):
        for optimizer, peaks in zip(state.optimizers, state.peaks):
            for group, peak in zip(optimizer.param_groups, peaks):
                group["lr"] = scale * peak
            optimizer.zero_grad(set_to_none=True)
        loss = forward_backward()
        torch.nn.utils.clip_grad_norm_(params, config.grad_clip)
        for optimizer in state.optimizers:
            optimizer.step()
        return loss

    return step


# --------------------------------------------------------------------------------------------------
# A run: made, saved, taken up again


@dataclass
class State:
    """All that a run is made of."""
    config: Config
    task: Task
    model: torch.nn.Module
    optimizers: list
    peaks: list  # their peak learning rates, one list per optimiser
    generator: torch.Generator  # of data and masks
    device: torch.device
    autocast: object
    process: int = 0  # which process this is ...
    processes: int = 1  # ... of how many
    step: int = 0
    seconds: float = 0.0
    solved: bool = False  # stop_at_solved was reached


def make_state(config, task, device, autocast, process=0, count=1, saved=None):
    """A run at step 0, or where its checkpoint left off. All that is random comes from config.seed.

    Raises BadInput for a checkpoint (of the run, or --init) that does not fit.
    """
    file = Path(config.out) / "ckpt.pt" if saved else config.init
    if file:
        model = model_with(saved or load_checkpoint(file), config, task, file)
    else:
        model = build_model(config, task)
        model.init_weights(torch.Generator().manual_seed(config.seed), config.embedding_std)
    model = model.to(device)
    optimizers = make_optimizers(model, config, device)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    generator = torch.Generator(device).manual_seed(config.seed)
    state = State(config, task, model, optimizers, peaks, generator, device, autocast, process,
                  count)
    if saved:
        restore(state, saved, file)
    return state


@torch.no_grad()
def held_out_loss(state):
    """The loss on data that training never draws, under uniform masks that are always the same."""
    tokens, given = state.task.held_out(state.config.eval_samples)
    generator = torch.Generator().manual_seed(2**40 + 2)  # on the CPU: all devices hide the same
    turn, W = draw_hidden((tokens, given), state.task, state.config, generator)
    config = replace(state.config, deep_supervision=0)  # nothing is learned here
    total = 0.0
    for i in range(0, len(tokens), 256):
        part = slice(i, i + 256)
        batch, hidden = (tokens[part].to(state.device), None), (turn[part].to(state.device), W)
        with state.autocast:
            loss = training_loss(state.model, batch, hidden, state.task, config)
        total += loss.item() * len(batch[0])
    return total / len(tokens)


def check_finite(losses, step, file):
    """losses: of the steps up to `step`. Raises BadInput that names the first one not finite."""
    for i, value in enumerate(losses):
        if not math.isfinite(value):
            kept = f"{file} holds the last good checkpoint"
            kept = kept if file.exists() else "no checkpoint was saved before it"
            raise BadInput(f"the loss became {value} at step {step - len(losses) + i + 1}; {kept}; "
                           "try a lower --learning-rate")


# --------------------------------------------------------------------------------------------------
# The loop


def has_ended(state):
    config = state.config
    timed_out = 0 < config.max_seconds <= state.seconds
    return state.step >= config.max_steps or timed_out or state.solved and config.stop_at_solved > 0


def loop(state, test_set, log, bar, asked_to_stop):
    """Train until the run has ended or is asked to stop -> last metrics or None, was it stopped."""
    config, task, device = state.config, state.task, state.device
    file, write_row = Path(config.out) / "ckpt.pt", csv.writer(log, lineterminator="\n").writerow
    dials = make_dials(config.objective, task, config.window)
    take_step = make_step(state)
    warm = state.step + (WARM_STEPS if config.compile else 0)  # compiling is not on the clock
    losses, metrics, ended, stopped, clock = [], None, False, False, time.perf_counter()
    while not ended and not stopped:
        # 1. one step
        scale = lr_scale(state.step, state.seconds + time.perf_counter() - clock, config)
        losses.append(take_step(scale))
        state.step += 1
        bar.update()
        if state.step <= warm:
            losses[-1].item()  # waits for the device
            clock = time.perf_counter()
        # 2. now and then look at the losses, evaluate, save
        due = [every and state.step % every == 0 for every in
               (config.log_every_steps, config.eval_every_steps, config.checkpoint_every_steps)]
        time_is_up = 0 < config.max_seconds <= state.seconds + time.perf_counter() - clock
        stop_now = asked_to_stop and state.processes == 1  # several stop together, at a due step
        if not (any(due) or state.step == config.max_steps or time_is_up or stop_now):
            continue
        values = summed(torch.stack(losses).tolist(), device, state.processes)  # waits for a GPU
        losses.clear()
        state.seconds += time.perf_counter() - clock
        check_finite(values, state.step, file)
        ended, stopped = has_ended(state) or time_is_up, bool(asked_to_stop)
        loss = sum(values) / len(values) / state.processes
        row = [state.step, f"{state.seconds:.3f}", f"{loss:.5f}", f"{scale:.4f}", "", "", ""]
        if (due[1] or ended) and state.process == 0:
            metrics, _, _ = evaluate(state.model, task, config.objective, dials, *test_set, 0,
                                     device, state.autocast, label="evaluating")
            row[4:] = f"{held_out_loss(state):.5f}", metrics["solved"], metrics["num"]
            state.solved = 0 < config.stop_at_solved <= metrics["solved_rate"]
            ended |= state.solved
        # what one process knows, the others learn
        ended, stopped = (n > 0 for n in summed([ended, stopped], device, state.processes))
        write_row(row)
        log.flush()
        if (due[2] or ended or stopped) and state.process == 0:
            save(state, file)
        solved = f", solved {metrics['solved']}/{metrics['num']}" if metrics else ""
        bar.set_postfix_str(f"loss {loss:.5f}{solved}")
        clock = time.perf_counter()  # evaluation and saving are not training time
    return metrics, stopped


def begin(config, resume):
    """-> the State of a run. What can be refused is refused here, before anything is written."""
    configuration.check(config)
    process, count = processes()
    device, autocast, reason = choose_device(config.device)
    if count > 1:
        join_processes(config, device, count)
    task, file = make_task(config), Path(config.out) / "ckpt.pt"
    saved = load_checkpoint(file) if resume and file.exists() else None
    if saved:
        configuration.check_same_run(saved["config"], asdict(config), file)
    state = make_state(config, task, device, autocast, process, count, saved)
    if process == 0:  # one process speaks for all
        check_out(config, resume)
        say(f"{task.name} {config.objective}, {state.model.num_params():,} parameters, {reason}")
    return state


def train(config, resume=False):
    """Train config's model; OUT/ckpt.pt and OUT/log.csv are the result.

    Returns the last evaluation's metrics, or None if the run had already ended. Raises BadInput for
    a bad config, a full disk or a loss that is not finite; KeyboardInterrupt after Ctrl-C and
    Stopped after SIGTERM, with the state saved.
    """
    state, file = begin(config, resume), Path(config.out) / "ckpt.pt"
    if has_ended(state):
        return None
    # the data: not on the clock, and Ctrl-C still stops at once
    test_set = state.task.test_set(config.eval_samples)
    state.task.prepare(state.device)
    silent = {"disable": True} if state.process else {}  # disable=False would overrule TQDM_DISABLE
    log = open(os.devnull, "w") if state.process else open_out(config, state.step)
    try:
        with stop_when_asked() as asked, tqdm(
                total=config.max_steps, initial=state.step, unit="step", smoothing=0.05,
                desc=f"{config.task} {config.objective}", **silent) as bar:
            metrics, stopped = loop(state, test_set, log, bar, asked)
    except OSError as e:  # log.csv or stderr: a full disk, or whoever reads it went away
        if state.process == 0 and all(p.isfinite().all() for p in state.model.parameters()):
            save(state, file)
        if isinstance(e, BrokenPipeError):
            raise
        raise BadInput(f"cannot write to {config.out} or stderr: {e.strerror}; step {state.step} "
                       "is saved") from None
    finally:
        log.close()
        if state.processes > 1:
            torch.distributed.destroy_process_group()
    if stopped:
        if state.process == 0:
            say(f"saved step {state.step} in {file}; go on with --resume")
        raise Stopped if signal.SIGTERM in asked else KeyboardInterrupt
    return metrics


# --------------------------------------------------------------------------------------------------
# Command line


def parse_config(argv):
    """Command line -> Config, resume flag. Defaults < preset < flags; all of them are checked."""
    p = Parser(__doc__)
    p.add_argument("--preset", choices=sorted(PRESETS), help="a set of fields; flags override it")
    p.add_argument("--resume", action="store_true",
                   help="go on from OUT/ckpt.pt with its config; an empty OUT starts fresh")
    configuration.add_flags(p)
    flags = vars(p.parse_args(argv))
    preset, resume = flags.pop("preset"), flags.pop("resume")
    asked = {**PRESETS.get(preset, {}), **flags}
    config = Config(**asked)
    file = Path(config.out) / "ckpt.pt"
    if resume and file.exists():
        saved = load_checkpoint(file)["config"]
        configuration.check_same_run(saved, asked, file)
        changed = {k: v for k, v in asked.items() if k in MAY_CHANGE}
        changed["out"] = config.out  # where it was found: the folder may have been renamed
        config = replace(saved, **changed)
    configuration.check(config)
    configuration.check_asked(config, flags)
    return config, resume


def main(argv=None):
    config, resume = parse_config(argv)
    metrics = train(config, resume)
    if processes()[0]:
        return
    if metrics is None:
        step = load_checkpoint(Path(config.out) / "ckpt.pt")["step"]
        why = "it has ended"
        if step > config.max_steps:
            why = f"--max-steps {config.max_steps} is less"
        print(f"{printable(config.out, 200)} is already at step {step}, and {why}; nothing to do")
        return
    low, high = metrics["interval"]
    print(f"{config.task} {config.objective}: solved {metrics['solved']}/{metrics['num']} = "
          f"{100 * metrics['solved_rate']:.1f} % (95 % interval {100 * low:.1f}-{100 * high:.1f}); "
          f"{printable(config.out, 200)}/ckpt.pt")


if __name__ == "__main__":
    end(run(main))
