"""All decoders on one checkpoint and the same puzzles: what is run.

    B samples   A cells

`reproduce.py --preset decoders` trains the checkpoints and runs this; plumbing/report.py reports
it. Every decoder is shown over its whole sweep; every forward pass is counted, with drafts and
probes. Differences are paired: plain at one cell a pass decodes the same puzzles.
"""
import torch

from decoders import DECODERS
from metrics import summarize
from noise import sample_keys
from objectives import OBJECTIVES, SamplingParams
from plumbing.decoder_tables import NOT_CHOSEN, to_hex
from sample import evaluate
from studies.common import decode_boards
from studies.oracle import oracle_decode

CEILINGS = {"oracle: all right guesses": None, "oracle: one right guess": 1}  # cells a pass
# Costs that a sweep of the first parameter does not show, and the three other orders of plain.
MORE = (("plain", {"order": "margin"}), ("plain", {"order": "entropy"}),
        ("plain", {"order": "random"}), ("remdm", {"passes": 16}), ("p2", {"passes": 16}),
        ("p2", {"passes": 8}), ("dkv", {"cache": "immediate"}))


def grid(test, ceilings=tuple(CEILINGS), restarts=(4, 16)):
    """Everything that is run on one test set -> dicts for evaluate_decoder()."""
    runs = [(name, {spec.main: value}) for name, spec in DECODERS.items() for value in spec.sweep]
    runs += [*MORE, *((name, {}) for name in ceilings)]
    runs = [{"test": test, "decoder": name, "decoder_params": params} for name, params in runs]
    return tuple(runs + [{"test": test, "decoder": "plain", "decoder_params": {}, "restarts": r}
                         for r in restarts])


@torch.no_grad()
def evaluate_decoder(model, task, objective, asked, start, references, seed, device, autocast):
    """One dict of grid() -> a row. start (B, S), references (B, A), on the CPU.

    once_right: how many samples were right as a whole in some pass and wrong in the end, where the
    task has one answer (over-denoising). solved_bits: which were solved, for paired differences.
    """
    name, restarts = asked["decoder"], asked.get("restarts", 0)
    temperature = 0.0 if task.unique_answer else 1.0
    if name in CEILINGS:
        keys = sample_keys(seed, start, copies_differ=temperature > 0).to(device)
        with autocast:
            tokens, stats, seconds = decode_boards(
                model, task, OBJECTIVES[objective].ranks, start.to(device), keys,
                lambda board, rows: oracle_decode(board, references[rows].to(device),
                                                  CEILINGS[name]),
                temperature, size=len(start))
        metrics = summarize(task, start, tokens[:, task.P:], references, stats, seconds)
    else:
        params = DECODERS[name].settings(asked["decoder_params"])
        sampling = SamplingParams("-", 1, 0, 1, temperature, name, params)
        metrics, _, stats = evaluate(model, task, objective, sampling, start, references, seed,
                                     device, autocast, label=name, restarts=restarts)
    lost = int((stats["once_right"] & ~stats["solved"]).sum()) if task.unique_answer else None
    return {"objective": objective, "trained_window": None, **NOT_CHOSEN,
            "temperature": temperature, **metrics, "test": asked["test"], "restarts": restarts,
            "decoder": name, "decoder_params": asked["decoder_params"], "once_right": lost,
            "solved_bits": to_hex(stats["solved"])}
