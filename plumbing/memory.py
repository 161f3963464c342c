"""The peak of GPU memory, as bench.py and reproduce.py report it."""
import gc

import torch


def watch_memory(device):
    """Begin to measure for peak_memory_gb().

    Call it before a training begins, because replaying a CUDA graph allocates nothing.
    """
    gc.collect()  # frees the previous model
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gb(device):
    """The most that was allocated since watch_memory(), or None without a GPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
