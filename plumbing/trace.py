"""The record of each decoding step, and the file that the viewer shows.

    B batch   P prompt positions   A answer positions   S = P + A   K answer symbols
    R samples that take part in a step   T tokens in its forward pass   Q predicted cells

`decode(..., history)` appends a RECORD per forward pass of B samples: a dict with

    tokens      (B, S) after the pass, MASK if unknown
    present     (R or 1, T) positions in the pass (1: the same for all samples)
    rank        (R or 1, T), +inf for tokens that are left out; or None, or CAUSAL (model.py)
    logits      (R, Q, K)
    cells       (R or 1, Q) positions of the logits; None or absent: `present`
    rows        (R,) which of the B samples take part; None or absent: all
    candidates  the number of candidates, the last ones of `present`; None or absent: all of them
    pairs       in the pass, int or (R,); None or absent: T without those that are left out
    passes      forward passes, int or (R,); absent: 1
    at          time.perf_counter() at the end of the step

write() turns a history into a TRACE: FILE.json, or FILE.html, which is viewer/viewer.html with the
same text inside. JSON, one step per line:

    format, version  "nanolatent trace", 1; the number rises when the meaning of a field changes
    task             {name, kind "board" or "path", P, A}; a board: side, box [rows, columns];
                     a path: walk, the pairs of cells that are one edge of the answer
    symbols          the K answer symbols as text; in other fields a symbol is its number 0..K-1
    about            {objective, params, order, latents, temperature, seed, ...}: words and numbers
    samples          a list of
        prompt       the puzzle as text
        start        A symbols at the start, -1 if unknown
        given        the same, with the givens of the prompt (layout "prompt")
        edges, ends  paths only: [[a, b], ...] and [start, goal], as symbols
        reference    A symbols, or null without a reference
        solved, mistakes [sentences], nfe, tokens    of the answer
        steps        a list of
            who      a letter for each of the S positions: k known, l latent, c candidate, "." not
                     in the pass, n predicted by its predecessor (next-token models: the position
                     itself is not in the pass)
            rank     null (all see all), "causal" (1, 2, 3, ...), or a list for the k, l and c of
                     `who` in their order (model.visible says who sees whom)
            probs    base64 of K uint8 for each l, c and n in their order: 255 is probability 1
                     (at temperature 1)
            entropy  base64 of a uint8 for each of them: 255 is log K nats
            set      [[cell, symbol], ...] committed in this step; cells are numbered 0..A-1
            undone   [cell, ...] whose symbol was removed; if it was replaced it is in set, too
            tokens   pairs in this step;  passes: forward passes
            seconds  since decoding began (of the whole batch), or null if not measured
            mistakes sentences, if they differ from those of the step before; at most 8

The page does not trust a trace: it checks every field again.
"""
import base64
import json
import math
from pathlib import Path

import torch

from data.puzzles import BOX
from model import CAUSAL
from plumbing.checkpoint import write_text
from plumbing.cli import BadInput, printable

FORMAT, VERSION = "nanolatent trace", 1
MOST = 16  # samples in a trace
PAGE = Path(__file__).parents[1] / "viewer" / "viewer.html"
PLACE = '<script type="application/json" id="trace"></script>'  # the place of the page's data


def new_history(args, num):
    """sample.py's arguments, number of samples -> history: [], or None if it is not needed.

    Raises BadInput for more than MOST samples.
    """
    if args.trace and num > MOST:
        raise BadInput(f"--trace takes at most {MOST} samples, not {num}; give --num {MOST}")
    return [] if args.trace or num == 1 and not args.json else None


def write(file, task, start, references, history, answers, stats, about):
    """Write the trace of one decoded batch, as JSON or (FILE.html) as a page. Raises BadInput.

    start (B, S); references (B, A), a row of -1 for a sample without one, or None; history: list of
    records; answers (B, A); stats: nfe, tokens, solved, (B,) each; about: a dict of plain values,
    with the seconds of the whole batch, or None.
    """
    text = to_text(trace(task, start, references, history, answers, stats, about))
    if str(file).lower().endswith((".html", ".htm")):
        text = embed(text, PLACE)
    write_text(file, text)


def trace(task, start, references, history, answers, stats, about):
    """As write() -> the trace as a dict."""
    samples = []
    for b in range(len(start)):
        reference = None if references is None or references[b, 0] < 0 else references[b].tolist()
        samples.append({
            "prompt": task.format(start[b]), **layout(task, start[b]), "reference": reference,
            "solved": bool(stats["solved"][b]), "mistakes": task.mistakes(start[b], answers[b]),
            "nfe": int(stats["nfe"][b]), "tokens": int(stats["tokens"][b]),
            "steps": steps_of(task, start[b], history, b, about.get("seconds"))})
    return {"format": FORMAT, "version": VERSION, "task": geometry(task),
            "symbols": [task.encoding.decode([i]) for i in range(task.K)],
            "about": about, "samples": samples}


def geometry(task):
    """-> the entry `task` of a trace: what the page needs to draw an answer."""
    shape = {"name": task.name, "P": task.P, "A": task.A}
    if hasattr(task, "N"):
        return {**shape, "kind": "board", "side": task.N, "box": BOX[task.N]}
    walk = task.steps(torch.arange(task.A).unsqueeze(0))[0].tolist()
    return {**shape, "kind": "path", "walk": walk}


def layout(task, start):
    """start (S,) -> the entries start and given, for paths edges and ends."""
    known = start[task.P:].masked_fill(start[task.P:] == task.MASK, -1).tolist()
    if hasattr(task, "N"):
        return {"start": known, "given": task.givens(start.unsqueeze(0))[0].tolist()}
    prompt = start[:task.P].tolist()
    return {"start": known, "given": known, "ends": prompt[-2:],
            "edges": [prompt[i:i + 2] for i in range(0, task.P - 2, 2)]}


def steps_of(task, start, history, b, total_seconds):
    """The steps of sample b, which starts at start (S,)."""
    before, told, steps = start.tolist(), [], []
    for step in history:
        rows = step.get("rows")
        rows = range(len(step["tokens"])) if rows is None else rows.tolist()
        if b not in rows:
            continue
        after, r = step["tokens"][b].tolist(), list(rows).index(b)
        mistakes = task.mistakes(start, step["tokens"][b, task.P:].cpu())
        entry = {**pairs_of(task, before, step, r), **changes(task, before, after),
                 "passes": number_of(step.get("passes", 1), r),
                 "seconds": seconds_of(step, history, total_seconds)}
        if mistakes != told:
            more = [f"and {len(mistakes) - 7} more"] if len(mistakes) > 8 else []
            entry["mistakes"] = mistakes[:7] + more if more else mistakes
        steps.append(entry)
        before, told = after, mistakes
    return steps


def row_of(values, r):
    """Row r of (R or 1, ...), on the CPU."""
    return values[r if len(values) > 1 else 0].cpu()


def number_of(value, r):
    """value: an int or (R,) -> the int of row r."""
    return int(value[r]) if isinstance(value, torch.Tensor) else value


def pairs_of(task, before, step, r):
    """Who was in the pass of row r, their ranks, and the predictions for unknown cells."""
    present = row_of(step["present"], r)  # (T,)
    about_all = step.get("cells") is None
    cells = present if about_all else row_of(step["cells"], r)  # (Q,)
    rank = row_of(step["rank"], r) if isinstance(step["rank"], torch.Tensor) else None
    taken = torch.ones(len(present), dtype=torch.bool) if rank is None else rank != math.inf
    candidate = torch.ones(len(present), dtype=torch.bool)
    if step.get("candidates") is not None:
        candidate[:-step["candidates"]] = False
    who, ranks, about, in_pass = ["."] * task.S, {}, {}, set(present.tolist())
    for t, position in enumerate(present.tolist()):
        if taken[t]:
            unknown = "c" if candidate[t] else "l"
            who[position] = unknown if before[position] == task.MASK else "k"
            ranks[position] = None if rank is None else rank[t].item()
    for q, position in enumerate(cells.tolist()):
        if about_all and not taken[q]:
            continue
        if position not in in_pass and before[position] == task.MASK:
            who[position] = "n"
        about[position] = q
    predicted = [about[position] for position in range(task.S) if who[position] in "lcn"]
    ranks = [plain(ranks[p]) for p in range(task.S) if who[p] in "klc"]
    pairs = number_of(step.get("pairs"), r)
    return {"who": "".join(who), "tokens": int(taken.sum()) if pairs is None else pairs,
            "rank": CAUSAL if step["rank"] is CAUSAL else None if rank is None else ranks,
            **distributions(row_of(step["logits"], r)[predicted].float())}


def plain(rank):
    """A rank as a JSON number, an int if it is whole."""
    return int(rank) if rank is not None and rank == int(rank) else rank


def distributions(logits):
    """logits (q, K) -> probabilities and entropies, as bytes."""
    probs = logits.softmax(dim=-1)
    entropy = -torch.special.xlogy(probs, probs).sum(dim=-1) / math.log(max(2, logits.shape[-1]))
    return {"probs": in_bytes(probs), "entropy": in_bytes(entropy)}


def in_bytes(values):
    """Numbers from 0 to 1 -> base64 of uint8."""
    values = (255 * values).round().clamp(0, 255).to(torch.uint8)
    return base64.b64encode(values.numpy().tobytes()).decode("ascii")


def changes(task, before, after):
    """Tokens (S,) before and after a step -> the entries set and undone."""
    cells = range(task.P, task.S)
    return {"set": [[p - task.P, after[p]] for p in cells
                    if after[p] not in (before[p], task.MASK)],
            "undone": [p - task.P for p in cells if before[p] not in (after[p], task.MASK)]}


def seconds_of(step, history, total):
    """Seconds since decoding began: the total minus the time after this step.

    None on a GPU, because the host does not wait for it in each step.
    """
    if total is None or step["tokens"].device.type != "cpu":
        return None
    return round(max(0.0, total - (history[-1]["at"] - step["at"])), 4)


def to_text(trace):
    """A trace as JSON in ASCII, one line per step."""
    def dump(value):
        return json.dumps(value, separators=(",", ":"))

    samples = []
    for sample in trace["samples"]:
        head = {name: value for name, value in sample.items() if name != "steps"}
        steps = ",\n".join(map(dump, sample["steps"]))
        samples.append(f'{dump(head)[:-1]},"steps":[\n{steps}]}}')
    head = {name: value for name, value in trace.items() if name != "samples"}
    return f'{dump(head)[:-1]},"samples":[\n' + ",\n".join(samples) + "]}\n"


def embed(text, place, page=None):
    """Put JSON text into the empty script element `place` of the page -> HTML. Raises BadInput.

    "<" is escaped, so that the data cannot end the script element or begin another.
    """
    page = PAGE.read_text(encoding="utf-8") if page is None else page
    if page.count(place) != 1:
        raise BadInput(f"{printable(PAGE, 200)} has no place for data; write the trace as .json")
    opening = place.removesuffix("</script>")
    return page.replace(place, opening + text.replace("<", "\\u003c") + "</script>")
