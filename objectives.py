"""What an objective is: one entry of a table. Training, decoding and the command line read it.

    n latents   W window   A answer positions
    level: <= 0 for a known cell, 1, 2, 3, ... for unknown cells in the order of decoding

An objective is a RANKING (model.visible) together with what is masked in training.
tests/concepts/test_objectives.py adds one in a few lines, trains it and decodes with it.
"""
from collections.abc import Callable
from dataclasses import dataclass, field

import diffusion
import mtp
from errors import BadInput

ALL = 10**9  # "all latents", "all candidates": more than any task has
ORDERS = ("random", "confidence", "margin", "entropy", "left_to_right")


ANY_ORDER = ("order", "candidates", "tokens_per_step", "temperature")


@dataclass(frozen=True)
class Objective:
    ranks: Callable  # (level, W) -> rank: who may look at whom, in training and in decoding
    mask: Callable = diffusion.mask_random  # (given, generator, config) -> level, W, in training
    loss: Callable = diffusion.masked_loss  # nats per scored token of each sample
    latents: int | str = 0  # in decoding: a number, or the parameter that sets it
    left_to_right: bool = False  # cells are decoded in their order; latents follow right behind
    next_token: bool = False  # logits at position i predict token i + 1; no masks, a cache
    sampling: tuple = ANY_ORDER  # the sampling parameters that it has
    bound: bool = True  # metrics.held_out_likelihood() can be had


OBJECTIVES = {
    # masked diffusion, joint: all other unknown cells are latents, always
    "mdm": Objective(diffusion.joint, latents=ALL),
    # the ablation: no latents
    "sidm": Objective(diffusion.independent),
    # the dial: n latents of your choice
    "scdm": Objective(diffusion.semi_causal, latents="latents", sampling=(*ANY_ORDER, "latents")),
    # a wider dial, in which latents see each other (this project's own)
    "bcdm": Objective(diffusion.block_causal, diffusion.mask_blocks, latents="latents",
                      sampling=(*ANY_ORDER, "latents"), bound=False),  # each n has its own
    # plain next token
    "ar": Objective(mtp.causal, mtp.mask_nothing, mtp.next_token_loss, left_to_right=True,
                    next_token=True, sampling=("temperature",)),
    # autoregressive with multi-token prediction: W - 1 latents
    "mtp": Objective(mtp.window_sees_itself, mtp.mask_suffix, latents="window",
                     left_to_right=True, sampling=("temperature", "window", "tokens_per_step")),
    # its ablation: the same training targets, but unknown cells do not see each other
    "mtp-no-latents": Objective(diffusion.independent, mtp.mask_suffix, left_to_right=True,
                                sampling=("temperature", "tokens_per_step")),
}


@dataclass
class SamplingParams:
    """How to decode. Counts may exceed what is left; every pass cuts them to it."""
    order: str
    candidates: int       # unknown cells that compete for being committed
    latents: int          # unknown cells that are present and not committed (mtp: W - 1)
    tokens_per_step: int  # cells committed in one forward pass
    temperature: float    # 0 is greedy
    decoder: str = ""     # an entry of decoders/, instead of sample.py's own loop
    decoder_params: dict = field(default_factory=dict)


def make_sampling_params(objective, task, trained_window="all", greedy=None, **asked):
    """The defaults of objective and task, overridden by what was asked (None: not asked).

    greedy: T = 0 and the most confident cell first, the default where the task has one answer
    (puzzles); else T = 1 and a random order (generation). All unknown cells are candidates, but 8
    (as in the paper) where latents can be dialled, because candidates take the place of latents.
    Raises BadInput for a parameter without a meaning.
    """
    rule = OBJECTIVES[objective]
    greedy = task.unique_answer if greedy is None else greedy
    asked = {k: v for k, v in asked.items() if v is not None}
    if rule.latents == ALL and asked.get("latents", 0) >= task.A - 1:
        asked.pop("latents", None)  # all is what it does anyway
    refuse_without_meaning(objective, asked)
    order = "left_to_right" if rule.left_to_right else "confidence" if greedy else "random"
    order = asked.get("order", order)
    fixed_order = order in ("random", "left_to_right")
    if "candidates" in asked and fixed_order:
        raise BadInput(f"--candidates has no meaning for --order {order}; legal orders with it: "
                       "confidence, margin, entropy")
    k = asked.get("tokens_per_step", 1)
    compete = asked.get("candidates", 8 if rule.latents == "latents" else ALL)
    candidates = k if fixed_order else max(k, compete)
    latents = asked.get("latents", ALL) if rule.latents == "latents" else rule.latents
    if latents == "window":
        trained = ALL if trained_window in ("all", "random") else int(trained_window)
        W = asked.get("window", trained)
        if k > W:
            raise BadInput(f"--tokens-per-step {k} is more than the window {W}; "
                           f"give --window {k} or more")
        latents = W - k
    temperature = asked.get("temperature", 0.0 if greedy else 1.0)
    return SamplingParams(order, candidates, latents, k, temperature)


def refuse_without_meaning(objective, asked):
    """Raises BadInput for a sampling parameter that the objective does not have."""
    has = OBJECTIVES[objective].sampling
    for name in asked:
        if name not in has:
            legal = ", ".join("--" + other.replace("_", "-") for other in has)
            raise BadInput(f"--{name.replace('_', '-')} has no meaning for objective "
                           f"{objective}; legal: {legal}")
