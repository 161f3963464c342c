"""results/ as pictures: accuracy against latents, seconds, forward passes or training time.

    n latents   W window

`found` is {preset: [result, ...]}, as report.load_results() returns it.
"""
import functools
from pathlib import Path

from decoders import compare
from plumbing.checkpoint import read_log, replace_file
from plumbing.cli import BadInput, printable
from plumbing.report import describe, is_amount, pooled

COLORS = {"mdm": "#1b6ca8", "sidm": "#c0392b", "scdm": "#2a9d5c", "mtp": "#8e44ad", "ar": "#7f7f7f"}


def color(objective):
    return COLORS.get(objective, "#333333")


def draw(found, folder):
    """found -> files: puzzles solved against passes; accuracy against latents and time where
    something is dialled; else accuracy against training."""
    try:
        import matplotlib
    except ImportError:
        raise BadInput("--figures needs matplotlib; "
                       "install it with: pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    files = []

    def save(figure, name):
        figure.tight_layout()
        files.append(Path(folder) / f"{name}.png")
        write = functools.partial(figure.savefig, format="png", dpi=120,
                                  metadata={"Software": None})
        replace_file(files[-1], write)
        plt.close(figure)

    if found.get("decoders"):
        save(compare.figure(plt, found["decoders"], "decoders: solved against forward passes"),
             "decoders")
    for preset, results in found.items():
        if preset in ("decoders", "windows", "demo-dial", "sudoku9-cpu", "layouts", "difficulty"):
            continue  # decoders: above; windows: with sudoku6; the others: a table says it
        rows = pooled(results)
        training = f"{preset}: accuracy during training ({seeds_of(rows)})"
        if preset == "sudoku9-gen":  # the others have equal seconds
            rows = [r for r in rows if r["name"] != "mdm-long"]
        if preset == "sudoku6":
            rows = both_families(rows, pooled(found.get("windows", [])))
        if any(r["test"] for r in rows):
            figure = draw_puzzles(plt, rows, f"{preset}: puzzles solved against forward passes "
                                             "(95 % intervals)")
        elif any(r["latents"] not in (0, "all") for r in rows):
            counts = {r["seeds"] for r in rows}
            bars = "whiskers: lowest and highest seed" if counts != {1} else "95 % intervals"
            bars += ", 95 % interval where one" if {1} < counts else ""
            figure = draw_dial(plt, rows, f"{preset}: accuracy against latents and against time "
                                          f"({seeds_of(rows)}, {bars})")
        else:
            figure = draw_training(plt, results, training)
        if figure:
            save(figure, preset)
        if preset == "sudoku9-gen":
            save(draw_training(plt, results, training), f"{preset}-training")
    return files


def seeds_of(rows):
    """-> in words, how many seeds the rows have."""
    few, seeds = min(r["seeds"] for r in rows), max(r["seeds"] for r in rows)
    return f"{few} to {seeds} seeds" if few < seeds else f"{seeds} seed{'s' * (seeds > 1)}"


def both_families(sudoku6, windows):
    """Diffusion from sudoku6, and mtp from windows, once that has been trained."""
    rows = [r for r in sudoku6 if r["objective"] != "mtp" or not windows] + windows
    for r in rows:  # one task, but not one training time: the legend shall say that
        r["task"] = f"{sum(r['train_seconds']) / r['seeds']:.0f} s of training"
    return rows


def lines_of(rows):
    """Rows that one line connects -> {(objective, which model, task): rows}."""
    specialists = [r for r in rows if r["window"] not in (None, "random")]
    lines = {}
    for r in rows:
        name = f"W = {r['window']}" if r["window"] else ""
        if r["window"] == "random":
            name = "one model, any window"
        elif r in specialists and len(specialists) > 2:
            name = "one model per window"
        lines.setdefault((r["objective"], name, r["task"]), []).append(r)
    return lines


def draw_puzzles(plt, rows, title):
    """A line for each test set and two models: the surest of all cells first, from eight a pass to
    restarts; with latents (mdm) and without (sidm), or what there is. None: there is neither."""
    tests = list(dict.fromkeys(r["test"] for r in rows))
    rows = [r for r in rows if r["candidates"] == "all" or r["order"] == "random"]
    sure = {r["name"] for r in rows if r["order"] == "confidence"}
    models = [name for name in ("mdm", "sidm", "mdm-long") if name in sure][:2]
    if not models:
        return None
    figure, axis = plt.subplots(figsize=(8, 4.4))
    for color, test in zip(plt.get_cmap("viridis").resampled(len(tests) + 1).colors, tests):
        name = test.removesuffix(".txt").replace("_", " ")
        for style, cross, model in zip(("-o", ":s"), "x+", models):
            members = [r for r in rows if r["test"] == test and r["name"] == model]
            surest = sorted((r for r in members if r["order"] == "confidence"),
                            key=lambda r: r["nfe"])
            y = [100 * r["rate"] for r in surest]
            low = [a - 100 * r["interval"][0] for a, r in zip(y, surest)]
            high = [100 * r["interval"][1] - a for a, r in zip(y, surest)]
            axis.errorbar([r["nfe"] for r in surest], y, yerr=[low, high], fmt=style, color=color,
                          capsize=3, label=name if model == models[0] else None)
            for r in members:
                if r["order"] == "random":
                    axis.plot(r["nfe"], 100 * r["rate"], cross, color=color, ms=8)
    for style, cross, model in zip(("k-o", "k:s"), ("kx", "k+"), models):
        of_model = [r for r in rows if r["name"] == model]
        seconds = of_model[0]["train_seconds"][0]
        axis.plot([], [], style, label=f"{model}, {seconds:.0f} s, {seeds_of(of_model)}")
        axis.plot([], [], cross, label=f"{model}, random order")
    axis.set(title=title, xscale="log", ylim=(-2, 103), ylabel="solved, %",
             xlabel="forward passes per puzzle: 8, 4, 2, 1 cells a pass, then up to 4, 16 restarts")
    axis.title.set_fontsize(11)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return figure


def draw_dial(plt, rows, title):
    """Left: solved against latents. Right: against measured milliseconds, of one machine."""
    most = max(r["latents"] for r in rows if r["latents"] != "all")
    for r in rows:
        r["x"] = 2.2 * most if r["latents"] == "all" else r["latents"]
        r["ms"] = 1000 * r["seconds"] * r["seeds"] / r["num"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    machine = rows[0]["machine"]
    for i, ((objective, name, task), members) in enumerate(lines_of(rows).items()):
        label = f"{objective}{', ' + name if name else ''}"
        label += f" ({task})" if len({r["task"] for r in rows}) > 1 else ""
        here = [r for r in members if r["machine"] == machine]
        dashes = "--" if name == "one model per window" else "-"
        draw_line(left, members, "x", i, dashes, objective, name, label)
        if here:
            line = dashes if len(here) == len(members) else ""
            draw_line(right, here, "ms", i, line, objective, name, label)
    left.set_xscale("symlog", linthresh=1)
    ticks = (0, 1, 2, 4, 8, 16, 32, 64, 128, 2.2 * most)
    ticks = [x for x in ticks if any(r["x"] == x for r in rows)]
    left.set_xticks(ticks, ["all" if t > most else str(t) for t in ticks])
    left.minorticks_off()
    left.set_xlabel("latent tokens in each forward pass (n, or W - 1)")
    left.set_ylabel("solved, %")
    left.set_ylim(0, 103)
    right.set_xlabel(f"milliseconds per sample ({machine})")
    if max(r["ms"] for r in rows) > 20 * min(r["ms"] for r in rows):
        right.set_xscale("log")
        right.xaxis.set_major_formatter("{x:g}")
        right.xaxis.set_minor_formatter("")
    else:
        right.set_xlim(left=0)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    right.legend(*left.get_legend_handles_labels(), fontsize=8, loc="center left",
                 bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


def draw_line(axis, members, x, i, line, objective, name, label):
    """One model, dialled: points with whiskers, joined by `line`. i: its number on this axis."""
    members = sorted(members, key=lambda r: r["x"])
    y = [100 * r["rate"] for r in members]
    low = [min(r["rates"]) if r["seeds"] > 1 else r["interval"][0] for r in members]
    high = [max(r["rates"]) if r["seeds"] > 1 else r["interval"][1] for r in members]
    error = [[max(0, a - 100 * b) for a, b in zip(y, low)],
             [max(0, 100 * b - a) for a, b in zip(y, high)]]
    marker = "s" if objective in ("ar", "mtp") else "o"  # squares: left to right
    at = [0.04 * i if r[x] == 0 else r[x] for r in members]  # whiskers at 0 would lie on each other
    inside = "white" if name == "one model, any window" else color(objective)
    if len(members) == 1 and members[0]["latents"] == 0:
        inside = "none"
    axis.errorbar(at, y, yerr=error, fmt=line + marker, color=color(objective), mfc=inside,
                  capsize=3, label=label)


def draw_training(plt, results, title):
    """One panel per task: solved against training seconds, a line for each run and seed."""
    tasks = list(dict.fromkeys(describe(d["config"]) for d in results))
    figure, axes = plt.subplots(1, len(tasks), figsize=(5.5 * len(tasks) + 1, 4), squeeze=False)
    for axis, task in zip(axes[0], tasks):
        for d in (d for d in results if describe(d["config"]) == task):
            seconds, solved = curve(d["log"])
            objective, window = d["rows"][0]["objective"], d["rows"][0]["trained_window"]
            label = objective + (f", W = {window}" if window else "")
            dashes = "--" if window == "1" else "-"
            if d["name"] == "mdm-long":  # another schedule: its early points compare with no others
                dashes, label = ":", f"{label}, {max(seconds, default=0):.0f} s"
            axis.plot(seconds, solved, dashes, color=color(objective),
                      label=label if d["seed"] == results[0]["seed"] else None)
        axis.set(title=task, xlabel="training seconds", ylabel="solved, %", ylim=(-2, 103))
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def curve(file):
    """A log -> training seconds and solved %, where there was an evaluation. Raises BadInput."""
    seconds, solved = [], []
    for number, row in enumerate(read_log(file), 2):
        try:
            if not row["solved"]:
                continue
            second, k, n = float(row["seconds"]), int(row["solved"]), int(row["num"])
        except (KeyError, TypeError, ValueError):
            second, k, n = 0.0, 0, 0
        if not is_amount(second) or not 0 <= k <= n or n == 0:
            raise BadInput(f"{printable(file, 200)} line {number}: its seconds, solved or num are "
                           "missing or impossible; make the file again, or move it away")
        seconds.append(second)
        solved.append(100 * k / n)
    return seconds, solved
