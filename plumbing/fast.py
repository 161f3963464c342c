"""Speed on a GPU, what is computed being the same: compiler, CUDA graph, several GPUs.

A student may skip this file: train.py trains without it, and a test holds the two to each other.
"""
import os

import torch

from errors import BadInput, printable, say

WARM_STEPS = 4  # the first steps of a process compile and record: they train, off the clock


# --------------------------------------------------------------------------------------------------
# The whole training step as one CUDA graph


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


class CUDAGraph:
    """A function of no arguments as a CUDA graph: a model this small otherwise waits for the host
    to launch its kernels one by one (LOG.md).

    It is run WARM_STEPS - 1 times (on a stream of its own, as recording needs), then recorded and
    replayed. What it reads and writes must be tensors that stay where they are.
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
# Several GPUs (torchrun): a process each, which has a rank


def environment_number(name, default):
    """A number that torchrun put into the environment. Raises BadInput for anything else."""
    text = os.environ.get(name, str(default))
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise BadInput(f"the environment variable {name} is '{printable(text)}', not a number; "
                       "unset it, or start with torchrun")
    return int(text)


def ddp_rank_and_size():
    """-> the rank of this process under torchrun, and the world size. 0, 1 without torchrun."""
    ddp_rank, world_size = environment_number("RANK", 0), environment_number("WORLD_SIZE", 1)
    world_size = max(1, world_size)
    if ddp_rank >= world_size:
        raise BadInput(f"RANK {ddp_rank} is not below WORLD_SIZE {world_size}; start with torchrun")
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if world_size > 1 and not all(name in os.environ for name in needed):
        raise BadInput(f"WORLD_SIZE is {world_size}, but this is not torchrun; unset it")
    return ddp_rank, world_size


def init_process_group(config, device, world_size):
    """Meet the other ranks of torchrun. Raises BadInput for what several cannot train."""
    if config.batch_size % (world_size * config.grad_accum_steps):
        raise BadInput(f"--batch-size {config.batch_size} is not a multiple of the world size "
                       f"{world_size} times --grad-accum-steps {config.grad_accum_steps}")
    if config.max_seconds:
        raise BadInput("--max-seconds goes by the clock, and processes have a clock each; "
                       "give --max-seconds 0 and --max-steps")
    if device.type == "cuda":
        local = environment_number("LOCAL_RANK", 0)
        if local >= torch.cuda.device_count():
            raise BadInput(f"more processes than GPUs, of which this machine has "
                           f"{torch.cuda.device_count()}; lower --nproc-per-node, or give "
                           "--device cpu")
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def all_reduce_sum(values, device, world_size):
    """values: numbers -> a list of their sums over all ranks, which ask at the same step."""
    if world_size == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.tolist()
