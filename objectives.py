"""What an objective is: one row of a table. Training, decoding and the command line read it here.

    n latents   W window   turn <= 0 known, 1, 2, 3, ... unknown in the order of decoding

An objective is a RANKING (model.visible) together with what is hidden in training. A new objective
is a new row; tests/concepts/test_objectives.py adds one in a few lines and trains and decodes it.
"""
from collections.abc import Callable
from dataclasses import dataclass, field

import diffusion
import mtp
from plumbing.cli import ALL, BadInput

ORDERS = ("random", "confidence", "margin", "entropy", "left_to_right")


@dataclass(frozen=True)
class Objective:
    ranks: Callable  # (turn, W) -> rank: who may look at whom, in training and in decoding
    hide: Callable = diffusion.hide  # which cells are unknown in training, and how many count
    nats: Callable = diffusion.hidden_nats  # the loss: nats per scored token of each sample
    latents: int | str = 0  # in decoding: a number, or the dial that sets it ("latents", "window")
    left_to_right: bool = False  # cells are decoded in their order, and latents follow right behind
    next_token: bool = False  # a token is predicted where its predecessor stands; no masks, a cache
    dials: tuple = ("order", "candidates", "tokens_per_step", "temperature")  # that mean something


OBJECTIVES = {
    # masked diffusion, joint: all other unknown cells are latents, always
    "mdm": Objective(diffusion.joint, latents=ALL),
    # the ablation: no latents
    "sidm": Objective(diffusion.independent),
    # the dial: n latents of your choice
    "scdm": Objective(diffusion.semi_causal, latents="latents",
                      dials=("order", "candidates", "tokens_per_step", "temperature", "latents")),
    # plain next token
    "ar": Objective(mtp.causal, mtp.hide_nothing, mtp.next_token_nats, left_to_right=True,
                    next_token=True, dials=("temperature",)),
    # autoregressive with multi-token prediction: W - 1 latents
    "mtp": Objective(mtp.window_sees_itself, mtp.hide_the_rest, latents="window",
                     left_to_right=True, dials=("temperature", "window", "tokens_per_step")),
}


@dataclass
class Dials:
    """How to decode. Counts may exceed what is left; they are cut to it at every step."""
    order: str
    candidates: int       # unknown cells that compete for being committed
    latents: int          # unknown cells that are present and not committed (mtp: W - 1)
    tokens_per_step: int  # cells committed in one forward pass
    temperature: float    # 0 is greedy
    decoder: str = ""     # a row of decoders/, instead of sample.py's own loop
    knobs: dict = field(default_factory=dict)  # of that decoder


def make_dials(objective, task, trained_window="all", greedy=None, **asked):
    """Defaults of the objective and task, overridden by what was asked (None: not asked).

    greedy: None takes the task's way: puzzles have one answer, so T = 0 and the surest cell first;
    generation has T = 1 and a random order. Raises BadInput for a dial without a meaning.
    """
    rule = OBJECTIVES[objective]
    greedy = task.unique_answer if greedy is None else greedy
    asked = {k: v for k, v in asked.items() if v is not None}
    if rule.latents == ALL and asked.get("latents", 0) >= task.A - 1:
        asked.pop("latents", None)  # all is what it does anyway
    for flag in asked:
        if flag not in rule.dials:
            whose = {0: " (it has none)", ALL: " (all its unknown cells are always latents)"}
            why = whose.get(rule.latents, "") if flag == "latents" else ""
            legal = ", ".join("--" + f.replace("_", "-") for f in rule.dials)
            raise BadInput(f"--{flag.replace('_', '-')} has no meaning for objective "
                           f"{objective}{why}; legal: {legal}")
    order = "left_to_right" if rule.left_to_right else "confidence" if greedy else "random"
    order = asked.get("order", order)
    fixed_order = order in ("random", "left_to_right")
    if "candidates" in asked and fixed_order:
        raise BadInput(f"--candidates has no meaning for --order {order}; legal orders with it: "
                       "confidence, margin, entropy")
    k = asked.get("tokens_per_step", 1)
    # The paper's window of 8 candidates leaves room for a dial; where every cell is present in any
    # case, all of them compete.
    most = asked.get("candidates", ALL if rule.latents == ALL else 8)
    candidates = k if fixed_order else max(k, most)
    latents = rule.latents
    if latents == "window":
        trained = ALL if trained_window in ("all", "random") else int(trained_window)
        W = asked.get("window", trained)
        if k > W:
            raise BadInput(f"--tokens-per-step {k} is more than the window {W}; "
                           f"give --window {k} or more")
        latents = W - k
    elif latents == "latents":
        latents = asked.get("latents", ALL)
    temperature = asked.get("temperature", 0.0 if greedy else 1.0)
    return Dials(order, candidates, latents, k, temperature)


def show_count(n, task):
    """A number of latents or candidates as reported: everything there can be is "all"."""
    return "all" if n >= task.A - 1 else n
