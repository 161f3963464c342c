"""All decoders on one checkpoint and the same puzzles: what is run, and how it is reported.

    B samples   A cells   k of n solved, 95 % intervals

`reproduce.py --preset decoders` trains the checkpoints and runs this. Every decoder is shown over
its whole sweep; every forward pass is counted, drafts and probes included. Differences are paired:
the same puzzles were decoded by plain at one cell a pass.
"""
import time

import torch

from decoders import DECODERS, finish
from decoders.board import Board
from decoders.oracle import oracle_decode, oracle_order
from metrics import summarize, wilson
from objectives import OBJECTIVES, Dials
from plumbing.randomness import sample_keys
from sample import evaluate

CEILINGS = {"oracle: all right guesses": oracle_decode, "oracle: surest right guess": oracle_order}
# Costs that a sweep of the first knob does not show, and the three other orders of plain.
MORE = (("plain", {"order": "margin"}), ("plain", {"order": "entropy"}),
        ("plain", {"order": "random"}), ("remdm", {"passes": 16}), ("p2", {"passes": 16}),
        ("p2", {"passes": 8}), ("dkv", {"cache": "immediate"}))
BITS = 4  # of solved samples in a hexadecimal digit


def grid(test, ceilings=tuple(CEILINGS), restarts=(4, 16)):
    """Everything that is run on one test set -> dicts for evaluate_decoder()."""
    runs = [(name, {row.main: value}) for name, row in DECODERS.items() for value in row.sweep]
    runs = [{"test": test, "decoder": name, "knobs": knobs} for name, knobs in (*runs, *MORE)]
    runs += [{"test": test, "decoder": "plain", "knobs": {}, "restarts": r} for r in restarts]
    return tuple(runs + [{"test": test, "decoder": name, "knobs": {}} for name in ceilings])


@torch.no_grad()
def evaluate_decoder(model, task, objective, asked, start, references, seed, device, autocast):
    """One dict of grid() -> a row. start (B, S), references (B, A), on the CPU.

    once_right: how many samples were right as a whole in some pass and are not in the end, where
    the task has one answer (over-denoising). solved_bits: who was solved, for paired differences.
    """
    name, restarts = asked["decoder"], asked.get("restarts", 0)
    temperature = 0.0 if task.unique_answer else 1.0
    if name in CEILINGS:
        metrics, stats = ceiling(model, task, objective, name, start, references, seed, device,
                                 autocast, temperature)
    else:
        knobs = DECODERS[name].settings(asked["knobs"])
        dials = Dials("of the decoder", 1, 0, 1, temperature, decoder=name, knobs=knobs)
        metrics, _, stats = evaluate(model, task, objective, dials, start, references, seed, device,
                                     autocast, label=name, restarts=restarts)
    lost = int((stats["once_right"] & ~stats["solved"]).sum()) if task.unique_answer else None
    return {"objective": objective, "trained_window": None, "latents": "all",
            "order": "of the decoder", "tokens_per_step": 1, "temperature": temperature, **metrics,
            "test": asked["test"], "restarts": restarts, "decoder": name, "knobs": asked["knobs"],
            "once_right": lost, "solved_bits": to_hex(stats["solved"])}


def ceiling(model, task, objective, name, start, references, seed, device, autocast, temperature):
    """As evaluate(), for a loop that is given the answers -> metrics, stats."""
    keys = sample_keys(seed, start, copies_differ=temperature > 0).to(device)
    board = Board(model, task, OBJECTIVES[objective].ranks, start.to(device), keys, temperature)
    began = time.perf_counter()
    with autocast:
        tokens, stats = finish(board, CEILINGS[name](board, references.to(device)))
    answers = tokens[:, task.P:].cpu()  # waits for the device
    seconds = time.perf_counter() - began
    stats = {key: value.cpu() for key, value in stats.items()}
    return summarize(task, start, answers, references, stats, seconds), stats


# --------------------------------------------------------------------------------------------------
# Report


def to_hex(solved):
    """bool (B,) -> hexadecimal text, the first sample first."""
    bits = "".join(map(str, solved.int().tolist()))
    bits += "0" * (-len(bits) % BITS)
    return "".join(f"{int(bits[i:i + BITS], 2):x}" for i in range(0, len(bits), BITS))


def from_hex(text, num):
    """-> list of num bool."""
    return [b == "1" for b in "".join(f"{int(c, 16):0{BITS}b}" for c in text)][:num]


def paired_difference(a, b):
    """Solved by a and not by b, and the reverse -> difference of rates and its 95 % half-width.

    a, b: lists of bool of the same puzzles. The interval is Wald's for paired proportions.
    """
    n = len(a)
    gained = sum(x and not y for x, y in zip(a, b, strict=True))
    lost = sum(y and not x for x, y in zip(a, b, strict=True))
    d = (gained - lost) / n
    return d, 1.96 * max(0.0, (gained + lost) / n - d * d) ** 0.5 / n ** 0.5


def pooled(results):
    """Results of the preset -> {(run, test): rows}, seeds added up, a row per decoder and knob."""
    groups = {}
    for result in results:
        for row in result["rows"]:
            key = (row["decoder"], tuple(row["knobs"].items()), row["restarts"])
            group = groups.setdefault((result["name"], row["test"]), {})
            group.setdefault(key, []).append((result["seed"], row))
    return {which: [pool(key, members, group) for key, members in group.items()]
            for which, group in groups.items()}


def pool(key, members, group):
    """One setting -> dict; its difference is to plain at k = 1, of the same seeds and puzzles."""
    name, knobs, restarts = key
    plain = dict(group.get(("plain", (("k", 1),), 0), []))
    mine, base = [], []
    for seed, row in members:
        if seed in plain and plain[seed]["num"] == row["num"]:
            mine += from_hex(row["solved_bits"], row["num"])
            base += from_hex(plain[seed]["solved_bits"], row["num"])
    rows = [row for _, row in members]
    solved, num = sum(r["solved"] for r in rows), sum(r["num"] for r in rows)
    mean = {k: sum(r[k] for r in rows) / len(rows) for k in ("nfe", "tokens", "seconds", "undone",
                                                             "order_tau")}
    lost = [r["once_right"] for r in rows]
    return {"decoder": name, "knobs": dict(knobs), "restarts": restarts, "seeds": len(rows),
            "solved": solved, "num": num, "rate": solved / num, "interval": wilson(solved, num),
            "difference": paired_difference(mine, base) if mine else None,
            "lost": None if None in lost else sum(lost) / num, **mean}


def wall_seconds(result):
    """What a result took, with its training, also where that had been done before."""
    training = result["training"] or {}
    earlier = result.get("source", "").startswith("trained earlier")
    return result["wall_seconds"] + (training.get("wall_seconds", 0) if earlier else 0)


def tables(results):
    """-> Markdown: a table for each checkpoint and test set."""
    if not results:
        return ""
    machines = dict.fromkeys(f"{m['device']}, torch {m['torch']}" for m in
                             (d["machine"] for d in results))
    walls = {}
    for d in results:
        walls.setdefault(d["name"], []).append(wall_seconds(d) / 60)
    minutes = " and ".join(f"{name} {sum(w) / len(w):.1f}" for name, w in walls.items())
    most = max(map(len, walls.values()))
    command = "python reproduce.py --preset decoders" + f" --seeds {most}" * (most > 1)
    parts = [f"`{command} --puzzles DIR` ({' and '.join(machines)}; minutes a seed, with training: "
             f"{minutes})"]
    for (name, test), rows in pooled(results).items():
        seeds = max(r["seeds"] for r in rows)
        text = [f"**decoders, {name}, test {test.removesuffix('.txt')}** ({seeds} seed"
                f"{'s' * (seeds > 1)}, {rows[0]['num'] // rows[0]['seeds']} samples each)", "",
                "| decoder | knob | solved % (95 %) | minus plain (paired) | passes | pairs | "
                "seconds | undone | lost % | tau |", "|" + "---|" * 10]
        for r in rows:
            low, high = (100 * x for x in r["interval"])
            knob = ", ".join(f"{k} = {v}" for k, v in r["knobs"].items())
            knob = knob or (f"up to {r['restarts']} restarts" if r["restarts"] else "")
            gain = "" if r["difference"] is None else "{:+.1f} ± {:.1f}".format(
                *(100 * x for x in r["difference"]))
            lost = "" if r["lost"] is None else f"{100 * r['lost']:.1f}"
            text.append(f"| {r['decoder']} | {knob} | {100 * r['rate']:.1f} ({low:.1f}-{high:.1f}) "
                        f"| {gain} | {r['nfe']:.1f} | {r['tokens']:.0f} | {r['seconds']:.2f} | "
                        f"{r['undone']:.1f} | {lost} | {r['order_tau']:+.2f} |")
        parts.append("\n".join(text))
    return "\n\n".join(parts)


def figure(plt, results, title):
    """A panel for each checkpoint and test set: solved against passes, a line per decoder."""
    groups = pooled(results)
    fig, axes = plt.subplots(1, len(groups), figsize=(5 * len(groups) + 2, 5.5), squeeze=False)
    names = list(dict.fromkeys(r["decoder"] for rows in groups.values() for r in rows))
    colors = plt.get_cmap("tab20").colors
    for axis, ((name, test), rows) in zip(axes[0], groups.items()):
        for i, decoder in enumerate(names):
            here = [r for r in rows if r["decoder"] == decoder and not r["restarts"]]
            if decoder not in CEILINGS:
                here = [r for r in here if list(r["knobs"]) == [DECODERS[decoder].main]]
            swept = sorted(here, key=lambda r: r["nfe"])
            style, color = "os^Dv"[i // 4 % 5] + "-", colors[i % 20]
            if decoder in CEILINGS:
                style, color = "*P"[list(CEILINGS).index(decoder)], "black"
            axis.plot([r["nfe"] for r in swept], [100 * r["rate"] for r in swept], style,
                      color=color, ms=5, lw=1, label=decoder, alpha=0.9)
        again = sorted((r for r in rows if r["restarts"]), key=lambda r: r["nfe"])
        axis.plot([r["nfe"] for r in again], [100 * r["rate"] for r in again], "kx--", lw=1,
                  label="plain, 4 and 16 restarts")
        axis.set(title=f"{name}, {test.removesuffix('.txt')}", xscale="log",
                 xlabel="forward passes per sample", ylabel="solved, %")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        axis.grid(alpha=0.25)
    axes[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    fig.suptitle(title, fontsize=11)
    return fig
