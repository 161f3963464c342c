"""Training: the optimiser step, the loop, evaluation, stopping and resuming.

    B batch   A answer positions   S positions   W window   lr_scale: 0..1 of the peak rate

    python train.py --preset sudoku4 --objective scdm --out out/s4      # train
    python train.py --out out/s4 --resume                               # go on after Ctrl-C or kill
    torchrun --nproc-per-node 2 train.py --preset sudoku4 --out out/s4  # same batches on two GPUs

OUT holds ckpt.pt, which is whole at any moment, and log.csv. config.py lists what can be chosen.
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import csv
import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

import config as configuration
from data import make_task
from diffusion import auxiliary_loss
from objectives import OBJECTIVES, make_sampling_params
from plumbing.checkpoint import (State, build_model, check_finite, check_out, load_checkpoint,
                                 model_with, open_out, restore, save)
from plumbing.cli import (BadInput, Stopped, choose_device, end, printable, run, say,
                          stop_when_asked)
from plumbing.fast import (WARM_STEPS, CUDAGraph, all_reduce_sum, compiler_works, ddp_rank_and_size,
                           init_process_group)
from plumbing.muon import BatchedMuon
from plumbing.show import parse_train_args, solved_line
from sample import evaluate

# --------------------------------------------------------------------------------------------------
# EDIT HERE: the loss, the optimiser and the step


def training_loss(model, tokens, level, W, task, config):
    """The loss of config.objective, in nats per scored token, averaged over the batch.

    tokens (B, S); level (B, A) and W from the objective's mask(). With config.deep_supervision its
    gradient includes terms that its value omits (diffusion.auxiliary_loss).
    """
    objective, every = OBJECTIVES[config.objective], config.deep_supervision
    loss = objective.loss(model, tokens, level, W, task, objective.ranks, read_every=every)
    return auxiliary_loss(loss.mean(dim=-1)) if every else loss.mean()  # loss: (R, B) or (B,)


def make_optimizers(model, config, device):
    """AdamW for everything, or Muon for the matrices of the blocks (arXiv 2502.16982).

    Learning rates are tensors, because a CUDA graph reads what is in them at every replay.
    """
    matrices = list(model.blocks.parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith("blocks")]
    gpu = device.type == "cuda"
    kind = {"dtype": torch.float64 if device.type == "cpu" else torch.float32, "device": device}
    adamw = dict(lr=torch.tensor(config.learning_rate, **kind), betas=(0.9, config.beta2),
                 fused=gpu, capturable=gpu)
    if config.optimizer == "muon":
        muon = BatchedMuon(matrices, lr=torch.tensor(config.muon_learning_rate, **kind),
                           weight_decay=config.weight_decay)
        return [muon, torch.optim.AdamW(rest, weight_decay=0.0, **adamw)]
    groups = [{"params": matrices, "weight_decay": config.weight_decay},
              {"params": rest, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, **adamw)]


def lr_scale(step, seconds, config):
    """Linear warm-up, constant, linear decay to 0. Progress: of steps or of seconds, the larger."""
    progress = step / config.max_steps
    if config.max_seconds:
        progress = max(progress, seconds / config.max_seconds)
    scale = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.decay_fraction:
        scale *= min(1.0, max(0.0, 1 - progress) / config.decay_fraction)
    return scale


def make_step(state):
    """-> step(lr_scale): one optimiser step, returning the loss (on the device: no waiting).

    Several processes draw the same batch and masks; each computes the loss of some of the samples,
    and gradients are averaged. On one GPU the same function runs as a CUDA graph.
    """
    config, task, generator = state.config, state.task, state.generator
    fast = config.compile and state.device.type == "cuda" and compiler_works(state.device)
    model = torch.compile(state.model) if fast else state.model
    if state.world_size > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
    micro_batches = config.grad_accum_steps * state.world_size

    def forward_backward():
        tokens, given = task.train_batch(config.batch_size, generator, state.device)
        level, W = OBJECTIVES[config.objective].mask(given, generator, config)  # (B, A)
        total = 0.0
        for i in range(state.ddp_rank, micro_batches, state.world_size):
            mine = slice(i, None, micro_batches)
            with state.autocast:
                loss = training_loss(model, tokens[mine], level[mine], W, task, config)
            (loss / config.grad_accum_steps).backward()
            total += loss.detach() / config.grad_accum_steps
        return total

    def update():
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = forward_backward()
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip)
        for optimizer in state.optimizers:
            optimizer.step()
        return loss

    run_update = CUDAGraph(update, generator) if fast and state.world_size == 1 else update

    def step(scale):
        for optimizer, peaks in zip(state.optimizers, state.peak_rates):
            for group, peak in zip(optimizer.param_groups, peaks):
                group["lr"].fill_(scale * peak)
        return run_update()

    return step


# --------------------------------------------------------------------------------------------------
# A run: made, saved, resumed


def make_state(config, task, device, autocast, ddp_rank=0, world_size=1, saved=None):
    """A run at step 0, or where its checkpoint left off. All that is random comes from config.seed.

    Raises BadInput for a checkpoint (of the run, or --init) that does not fit.
    """
    file = Path(config.out) / "ckpt.pt" if saved else config.init
    if file:
        model = model_with(saved or load_checkpoint(file), config, task, file)
    else:
        model = build_model(config, task)
        model.init_weights(torch.Generator().manual_seed(config.seed), config.embedding_std)
    optimizers = make_optimizers(model.to(device), config, device)
    peaks = [[group["lr"].item() for group in optimizer.param_groups] for optimizer in optimizers]
    generator = torch.Generator(device).manual_seed(config.seed)
    state = State(config, task, model, optimizers, peaks, generator, device, autocast, ddp_rank,
                  world_size)
    if saved:
        restore(state, saved, file)
    return state


@torch.no_grad()
def held_out_loss(state):
    """The loss on held-out data (of 4x4 boards training sees all), under the same uniform masks."""
    config = replace(state.config, deep_supervision=0, mask_rate_a=1.0, mask_rate_b=1.0,
                     uniform_fraction=0.0)
    tokens, given = state.task.held_out(config.eval_samples)
    generator = torch.Generator().manual_seed(2**40 + 2)  # on the CPU: the same on all devices
    level, W = OBJECTIVES[config.objective].mask(given, generator, config)
    total = 0.0
    for part in torch.arange(len(tokens)).split(256):
        batch, masked = tokens[part].to(state.device), level[part].to(state.device)
        with state.autocast:
            loss = training_loss(state.model, batch, masked, W, state.task, config)
        total += loss.item() * len(batch)
    return total / len(tokens)


# --------------------------------------------------------------------------------------------------
# The loop


def loop(state, test_set, log, bar, asked_to_stop):
    """Train until the run has ended or is asked to stop -> last metrics or None, was it stopped."""
    config, device, world_size = state.config, state.device, state.world_size
    write_row = csv.writer(log, lineterminator="\n").writerow
    sampling = make_sampling_params(config.objective, state.task, config.window)
    take_step, first_step = make_step(state), state.step
    losses, metrics, ended, stopped, clock = [], None, False, False, time.perf_counter()
    while not ended and not stopped:
        # 1. take one step
        scale = lr_scale(state.step, state.seconds + time.perf_counter() - clock, config)
        losses.append(take_step(scale))
        state.step += 1
        bar.update()
        if config.compile and state.step <= first_step + WARM_STEPS:
            losses[-1].item()  # waits for the device: compiling is not training time
            clock = time.perf_counter()
        # 2. is anything due? If not, the GPU is not waited for
        log_due, eval_due, save_due = (every and state.step % every == 0 for every in (
            config.log_every_steps, config.eval_every_steps, config.checkpoint_every_steps))
        time_is_up = state.time_is_up(state.seconds + time.perf_counter() - clock)
        stop_now = asked_to_stop and world_size == 1  # several stop together, at a due step
        at_end = state.step == config.max_steps or time_is_up
        if not (log_due or eval_due or save_due or at_end or stop_now):
            continue
        # 3. look at the losses; evaluate
        values = all_reduce_sum(torch.stack(losses).tolist(), device, world_size)
        losses.clear()
        state.seconds += time.perf_counter() - clock
        check_finite(values, state.step, state.file)
        ended, stopped = state.has_ended() or time_is_up, bool(asked_to_stop)
        loss = sum(values) / len(values) / world_size
        row = [state.step, f"{state.seconds:.3f}", f"{loss:.5f}", f"{scale:.4f}", "", "", ""]
        if (eval_due or ended) and state.ddp_rank == 0:
            metrics, _, _ = evaluate(state.model, state.task, config.objective, sampling, *test_set,
                                     0, device, state.autocast, label="evaluating")
            row[4:] = f"{held_out_loss(state):.5f}", metrics["solved"], metrics["num"]
            state.solved = 0 < config.stop_at_solved <= metrics["solved_rate"]
            ended |= state.solved
        # 4. log and save; share the stop flags across processes
        ended, stopped = (n > 0 for n in all_reduce_sum([ended, stopped], device, world_size))
        write_row(row)
        log.flush()
        if (save_due or ended or stopped) and state.ddp_rank == 0:
            save(state, state.file)
        solved = f", solved {metrics['solved']}/{metrics['num']}" if metrics else ""
        bar.set_postfix_str(f"loss {loss:.5f}{solved}")
        clock = time.perf_counter()  # evaluating and saving is not training time
    return metrics, stopped


def begin(config, resume):
    """-> the State of a run. What can be refused is refused here, before anything is written."""
    configuration.check(config)
    ddp_rank, world_size = ddp_rank_and_size()
    device, autocast, reason = choose_device(config.device)
    if world_size > 1:
        init_process_group(config, device, world_size)
    task, file = make_task(config), Path(config.out) / "ckpt.pt"
    saved = load_checkpoint(file) if resume and file.exists() else None
    if saved:
        configuration.check_same_run(saved["config"], asdict(config), file)
    state = make_state(config, task, device, autocast, ddp_rank, world_size, saved)
    if ddp_rank == 0:  # one process reports for all
        check_out(config, resume)
        say(f"{task.name} {config.objective}, {state.model.num_params():,} parameters, {reason}")
    return state


def train(config, resume=False):
    """Train config's model; OUT/ckpt.pt and OUT/log.csv are the result.

    Returns the last evaluation's metrics, or None if the run had already ended. Raises BadInput for
    a bad config, a full disk or a loss that is not finite; KeyboardInterrupt after Ctrl-C and
    Stopped after SIGTERM, with the state saved.
    """
    state = begin(config, resume)
    if state.has_ended():
        return None
    test_set = state.task.test_set(config.eval_samples)  # making data is not on the clock
    state.task.prepare(state.device)
    silent = {"disable": True} if state.ddp_rank else {}  # disable=False overrules TQDM_DISABLE
    log = open(os.devnull, "w") if state.ddp_rank else open_out(config, state.step)
    try:
        with stop_when_asked() as asked, tqdm(
                total=config.max_steps, initial=state.step, unit="step", smoothing=0.05,
                desc=f"{config.task} {config.objective}", **silent) as bar:
            metrics, stopped = loop(state, test_set, log, bar, asked)
    except OSError as e:  # log.csv or stderr: a full disk, or whoever reads it went away
        finite = all(p.isfinite().all() for p in state.model.parameters())
        if finite and state.ddp_rank == 0:
            save(state, state.file)
        if isinstance(e, BrokenPipeError):
            raise
        raise BadInput(f"cannot write to {config.out} or stderr: {e.strerror}; step {state.step} "
                       f"is {'saved' if finite else 'not saved'}") from None
    finally:
        log.close()
        if state.world_size > 1:
            torch.distributed.destroy_process_group()
    if stopped:
        if state.ddp_rank == 0:
            say(f"saved step {state.step} in {state.file}; go on with --resume")
        raise Stopped if signal.SIGTERM in asked else KeyboardInterrupt
    return metrics


# --------------------------------------------------------------------------------------------------
# Command line


def main(argv=None):
    config, resume = parse_train_args(__doc__, argv)
    metrics = train(config, resume)
    if ddp_rank_and_size()[0]:
        return
    if metrics is None:
        step = load_checkpoint(Path(config.out) / "ckpt.pt")["step"]
        less = step > config.max_steps
        why = f"--max-steps {config.max_steps} is less" if less else "it has ended"
        print(f"{printable(config.out, 200)} is already at step {step}, and {why}; nothing to do")
        return
    solved = solved_line(config.task, config.objective, metrics)
    print(f"{solved}; {printable(config.out, 200)}/ckpt.pt")


if __name__ == "__main__":
    end(run(main))
