"""Speed on a GPU, with the same results: compiler, CUDA graph, several GPUs.

A student may skip this file: train.py trains without it, and a test compares the two.
"""
import os

import torch

from errors import BadInput, say

WARM_STEPS = 4  # the first steps, which compile and record: they train, but are not timed


def compiler_works(device):
    """Try torch.compile on a tiny function. Without a compiler training is only slower."""
    torch.compiler.reset()  # otherwise it stops compiling after a few models in one process
    try:
        torch.compile(torch.sin)(torch.ones(2, device=device))
        return True
    except Exception as e:  # torch raises many kinds
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        say(f"torch.compile failed ({why}); training without it (--no-compile silences this)")
        return False


class CUDAGraph:
    """A function without arguments as a CUDA graph, because the GPU would otherwise wait for the
    host to launch each kernel of a small model (LOG.md).

    It runs WARM_STEPS - 1 times (on a stream of its own, as recording requires), then is recorded
    and replayed. The tensors that it reads and writes must keep their addresses.
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
            self.graph.register_generator_state(self.generator)  # new numbers in every replay
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.result = self.function()
        self.graph.replay()
        return self.result.clone()  # the next replay overwrites it


def ddp_rank_and_size():
    """-> the rank of this process under torchrun, and the world size. 0, 1 without torchrun."""
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    try:
        ddp_rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if not 0 <= ddp_rank < world_size or world_size > 1 and not set(needed) <= set(os.environ):
            raise ValueError
    except ValueError:
        raise BadInput("the environment variable RANK or WORLD_SIZE is set, but not by torchrun; "
                       "unset it, or start with torchrun") from None
    return ddp_rank, world_size


def init_process_group(config, device, world_size):
    """Join the other ranks of torchrun. Raises BadInput for configs that need one process."""
    if config.batch_size % (world_size * config.grad_accum_steps):
        raise BadInput(f"--batch-size {config.batch_size} is not a multiple of the world size "
                       f"{world_size} times --grad-accum-steps {config.grad_accum_steps}")
    if config.max_seconds:
        raise BadInput("--max-seconds needs one clock, but each process has its own; "
                       "give --max-seconds 0 and --max-steps")
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise BadInput(f"more processes than GPUs: this machine has "
                           f"{torch.cuda.device_count()}; lower --nproc-per-node, or give "
                           "--device cpu")
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def all_reduce_sum(values, device, world_size):
    """values: numbers -> a list of their sums over all ranks. All ranks must call it."""
    if world_size == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.tolist()
