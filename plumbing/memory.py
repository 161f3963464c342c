"""The peak of GPU memory, as bench.py and reproduce.py report it."""
import gc

import torch


def watch_memory(device):
    """From here on counts for peak_memory_gb().

    To be called before a training begins: a recorded step, replayed, allocates nothing that could
    be seen.
    """
    gc.collect()  # the model before this one
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gb(device):
    """The most that was allocated since watch_memory(), or None without a GPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
