"""Speed on a GPU, what is computed being the same: kernels, compiler, CUDA graph, processes.

A student may skip this file: train.py trains without it, and a test holds the two to each other.

    share   how much of the peak learning rate is taken, 0..1
"""
import contextlib
import os

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from plumbing.cli import BadInput, printable, say

WARM_STEPS = 4  # the first steps of a process compile and record: they train, off the clock


# --------------------------------------------------------------------------------------------------
# Attention


def attention_kernels(device_type, T):
    """The kernels for T tokens, or None for torch's own choice.

    torch's first choice on a GPU works in tiles of 128 tokens; for few tokens another kernel saves
    9 to 22 % of a step (LOG.md).
    """
    if device_type == "cuda" and 1 < T <= 64:
        return [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return None


def attention_for(device_type, T):
    """A context in which attention over T tokens uses those kernels."""
    kernels = attention_kernels(device_type, T)
    return sdpa_kernel(kernels) if kernels else contextlib.nullcontext()


# --------------------------------------------------------------------------------------------------
# The whole training step as one recorded graph


def compiler_works(device):
    """Try torch.compile on something tiny. Without a compiler training is slower and as right."""
    torch.compiler.reset()  # after a few models in one process it stops compiling new ones
    try:
        torch.compile(torch.sin)(torch.ones(2, device=device))
        return True
    except Exception as e:  # it raises many kinds
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        say(f"torch.compile failed ({why}); training without it (--no-compile silences this)")
        return False


def recorded_step(forward_backward, params, optimizers, generator, grad_clip, device):
    """-> step(share): what train.py's plain step does, replayed as one CUDA graph.

    forward_backward() draws a batch, leaves gradients in `params` and returns the loss. A model
    this small otherwise waits for the host to launch its kernels one by one (LOG.md). In a recorded
    graph the learning rate is fixed, so the step takes the update of the peak rate, which is linear
    in the rate, and keeps only `share` of it: before + share * (after - before).
    """
    before = [torch.empty_like(p) for p in params]
    share = torch.ones((), device=device)

    def one_step():
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = forward_backward()
        torch.nn.utils.clip_grad_norm_(params, grad_clip)
        with torch.no_grad():
            torch._foreach_copy_(before, params)
            for optimizer in optimizers:
                optimizer.step()
            torch._foreach_sub_(params, before)
            torch._foreach_mul_(params, share)
            torch._foreach_add_(params, before)
        return loss

    take = Recorded(one_step, generator) if device.type == "cuda" else one_step

    def step(scale):
        share.fill_(scale)
        return take()

    return step


class Recorded:
    """A function of no arguments as a CUDA graph.

    Run WARM_STEPS - 1 times (on a stream of its own, as recording needs), then recorded, replayed.
    """

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


# --------------------------------------------------------------------------------------------------
# Several processes (torchrun)


def process_number(name, default):
    """A number that torchrun put into the environment. Raises BadInput for anything else."""
    text = os.environ.get(name, str(default))
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise BadInput(f"the environment variable {name} is '{printable(text)}', not a number; "
                       "unset it, or start with torchrun")
    return int(text)


def processes():
    """-> PROCESS, PROCESSES: which process this is, of how many. 0, 1 without torchrun."""
    process, count = process_number("RANK", 0), max(1, process_number("WORLD_SIZE", 1))
    if process >= count:
        raise BadInput(f"RANK {process} is not below WORLD_SIZE {count}; start with torchrun")
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if count > 1 and not all(name in os.environ for name in needed):
        raise BadInput(f"WORLD_SIZE is {count}, but this is not torchrun; unset it")
    return process, count


def join_processes(config, device, count):
    """Meet the other processes of torchrun. Raises BadInput for what several cannot train."""
    if config.batch_size % (count * config.accumulate):
        times = f" times --accumulate {config.accumulate}" if config.accumulate > 1 else ""
        raise BadInput(f"--batch-size {config.batch_size} is not a multiple of the {count} "
                       f"processes{times}")
    if config.max_seconds:
        raise BadInput("--max-seconds goes by the clock, and processes have a clock each; "
                       "give --max-seconds 0 and --max-steps")
    if device.type == "cuda":
        local = process_number("LOCAL_RANK", 0)
        if local >= torch.cuda.device_count():
            raise BadInput(f"more processes than GPUs, of which this machine has "
                           f"{torch.cuda.device_count()}; lower --nproc-per-node, or give "
                           "--device cpu")
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def summed(values, device, count):
    """values: numbers -> a list of their sums over all processes, which ask at the same step."""
    if count == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.tolist()
