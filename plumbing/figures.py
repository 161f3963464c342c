"""results/ as pictures. What is drawn stands in FIGURES of reproduce.py; here is how.

    n latents   W window

A figure is a list of panels; a panel holds curves; a curve names its rows as the pages do (see
pages.py). The figures are as wide as GitHub shows them, so that their text can be read there.
"""
import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from errors import BadInput, printable
from model import CAUSAL, visible
from objectives import OBJECTIVES
from plumbing.checkpoint import read_log, replace_file
from plumbing.pages import select
from plumbing.report import amount

WIDTH, PIXELS = 8.3, 996  # of a figure: inches, which are 830 pixels on GitHub
NARROW = {"boards-9x9": 6.4}  # inches, also shown in 830 pixels: text that a phone can show
COLORS = {"mdm": "#1b6ca8", "sidm": "#c0392b", "scdm": "#2a9d5c", "bcdm": "#d2710a",
          "mtp": "#8e44ad", "mtp-no-latents": "#8e44ad", "ar": "#555555"}
ALL = {"sudoku-gen 6x6": 64, "sudoku-gen 9x9": 128}  # where "all" latents stand
GREY, INK = "#9aa0a6", "#16191d"
LABELS = {"latents": "latent tokens in each forward pass", "seconds": "training seconds",
          "ms": "milliseconds per sample", "nfe": "forward passes per sample",
          "distance": "planning distance", "tokens": "pairs per sample, over all passes",
          "percent": "solved, %", "seconds_ratio": "seconds, of those at n = all"}


@dataclass
class Curve:
    """Rows that a line joins. label: where it stands is said in points from one of the rows."""
    label: str
    rows: tuple | str  # one or several "preset/run column=value ..."
    line: str = "o-"  # marker and line of matplotlib
    color: str = ""  # else that of the objective
    at: tuple = (-1, 6, 0)  # the label: which row, how far to the right, how far up
    nudge: float = 0  # moves all of it along x, so that whiskers do not lie on each other


@dataclass
class Panel:
    """Solved % over x: a column of the rows, "ms", "seconds" of the logs, or a tuple of ticks."""
    title: str
    x: str | tuple
    curves: tuple
    chance: float = 0  # %: drawn where it is known
    log: bool = False
    legend: str = ""  # where it stands; "": labels at the curves
    y: str = "percent"
    xlabel: str = ""
    ylim: tuple = (-2, 104)


def draw(figures, rows, folder):
    """figures: {name: (panels in a row, height of a row in inches, panels)}; rows: see pages.py
    -> the files written. A curve without rows is left out, and so is a figure without curves."""
    try:
        import matplotlib
    except ImportError:
        raise BadInput("--figures needs matplotlib; "
                       "install it with: pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"font.size": 9.5, "axes.titlesize": 10.5, "axes.spines.top": False,
                         "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25})
    files = []
    for name, (across, height, panels) in figures.items():
        if any(select(rows, words) for panel in panels for words in rows_named(panel)):
            files.append(save(plt, draw_panels(plt, rows, across, height, panels,
                                               NARROW.get(name, WIDTH)), folder, name))
    files.append(save(plt, draw_rule(plt), folder, "rule"))
    return files


def save(plt, figure, folder, name):
    file = Path(folder) / f"{name}.png"
    replace_file(file, functools.partial(figure.savefig, format="png",
                                         dpi=round(PIXELS / figure.get_figwidth(), 6),
                                         metadata={"Software": None}))
    plt.close(figure)
    return file


def rows_named(panel):
    return [words for curve in panel.curves
            for words in ((curve.rows,) if isinstance(curve.rows, str) else curve.rows)]


# --------------------------------------------------------------------------------------------------
# Curves


def draw_panels(plt, rows, across, height, panels, width):
    """across: panels in a row; width of the figure and height of each row in inches."""
    down = math.ceil(len(panels) / across)
    figure, axes = plt.subplots(down, across, figsize=(width, height * down), squeeze=False,
                                layout="constrained")
    for axis in axes.flat[len(panels):]:
        axis.axis("off")
    for i, (axis, panel) in enumerate(zip(axes.flat, panels)):
        axis.set_title(panel.title, loc="left")
        for curve in panel.curves:
            draw_curve(axis, rows, panel, curve)
        if panel.chance:
            axis.axhline(panel.chance, color=INK, lw=1, ls=":")
            axis.annotate(f"chance {panel.chance:g} %", (1, panel.chance), (0, -3),
                          xycoords=("axes fraction", "data"), textcoords="offset points",
                          ha="right", va="top", color=INK,
                          bbox=dict(fc="white", ec="none", pad=0.5, alpha=0.8))
        dress(axis, panel, rows, first=i % across == 0)
    return figure


def draw_curve(axis, rows, panel, curve):
    """Points with whiskers (lowest and highest seed; of one seed the 95 % interval)."""
    words = (curve.rows,) if isinstance(curve.rows, str) else curve.rows
    if isinstance(panel.x, tuple):  # the i-th words are about the i-th tick
        found = [dict(row, x=i) for i, w in enumerate(words) for row in select(rows, w)[:1]]
    else:
        found = [row for w in words for row in select(rows, w)]
    if not found:
        return
    color = curve.color or COLORS.get(found[0].get("objective"), INK)
    if panel.x == "seconds":
        curves = [training(log) for log in found[0]["logs"]]
        for x, y in curves:
            axis.plot(x, y, curve.line.lstrip("o"), color=color, lw=1.4)
        points = list(zip(*curves[0]))
    else:
        found = sorted(found, key=lambda row: place(row, panel))
        points = [(place(row, panel) + curve.nudge, row[panel.y]) for row in found]
        axis.plot(*zip(*points), curve.line, color=color, ms=5, lw=1.6, label=curve.label,
                  mfc="white" if "--" in curve.line else None)
        if panel.y == "percent":
            for (x, y), row in zip(points, found):
                low, high = row["low"], row["high"]
                if row["seeds"] > 1:
                    low, high = (100 * f(row["rates"]) for f in (min, max))
                axis.plot([x, x], [low, high], color=color, lw=1.2, solid_capstyle="butt")
    at, right, up = curve.at
    if not panel.legend:
        side = "left" if right > 0 else "right" if right < 0 else "center"
        axis.annotate(curve.label, points[at], (right, up), textcoords="offset points",
                      color=color, va="center", ha=side)


def place(row, panel):
    """Where a row stands on the x axis."""
    if isinstance(panel.x, tuple):
        return row["x"]
    if panel.x == "ms":
        return 1000 * row["seconds"] * row["seeds"] / row["num"]
    if panel.x == "latents":
        return math.log2(1 + (ALL[row["task"]] if row["latents"] == "all" else row["latents"]))
    return float(row[panel.x])


def dress(axis, panel, rows, first):
    """Scales, ticks, limits and names of the axes."""
    from matplotlib.ticker import LogLocator
    axis.set_ylim(panel.ylim)
    if first:
        axis.set_ylabel(LABELS[panel.y])
    drawn = [row for words in rows_named(panel) for row in select(rows, words)]
    machine = f" ({drawn[0]['machine']})" if panel.x == "ms" and drawn else ""
    axis.set_xlabel((panel.xlabel or LABELS.get(panel.x, "")) + machine)
    if isinstance(panel.x, tuple):
        axis.set_xticks(range(len(panel.x)), panel.x)
        axis.set_xlim(-0.3, len(panel.x) - 0.7)
    if panel.x == "latents":
        ticks = {place(row, panel): row["latents"] for row in drawn}
        axis.set_xticks(list(ticks), list(ticks.values()))
    if panel.log:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:,g}")
        axis.xaxis.set_minor_formatter("")
    if panel.legend:
        axis.legend(loc=panel.legend, frameon=False, labelcolor="linecolor", handlelength=0.8,
                    handletextpad=0.4, labelspacing=0.2)


def training(file):
    """A log -> training seconds and solved %, where there was an evaluation. Raises BadInput."""
    seconds, solved = [], []
    for number, row in enumerate(read_log(file), 2):
        try:
            if not row["solved"]:
                continue
            second, k, n = float(row["seconds"]), int(row["solved"]), int(row["num"])
        except (KeyError, TypeError, ValueError):
            second, k, n = 0.0, 0, 0
        if not amount(second) or not 0 <= k <= n or n == 0:
            raise BadInput(f"{printable(file, 200)} line {number}: its seconds, solved or num are "
                           "missing or impossible; make the file again, or move it away")
        seconds.append(second)
        solved.append(100 * k / n)
    return seconds, solved


# --------------------------------------------------------------------------------------------------
# The rule as a picture

CELLS, KNOWN = 8, 3
KINDS = {"known": "#8ab4dd", "latent": "#f2b866", "decoded": "#6fbf8b", "absent": "#eceef1"}
RULE = ("Row q looks at column k if rank[k] < rank[q], or k is q, or both have the same rank "
        "<= 0.\nCells 1 to 3 are known. This forward pass decodes cell 4.")
PICTURES = (  # objective, latents, what to see
    ("ar", 0, "next token: each cell sees those\nbefore it; cell 3 predicts cell 4"),
    ("mtp", 2, "window W = 3: all that is\npresent sees all the others"),
    ("mdm", 4, "masked diffusion: all cells are\npresent and see each other"),
    ("sidm", 0, "no latents: unknown cells\nare not even present"),
    ("scdm", 2, "n = 2 latents: each sees those\nof lower rank, cell 4 sees all"),
    ("bcdm", 2, "n = 2 latents see each other,\ncell 4 sees all (not in the paper)"))


def ranks_of(objective, n):
    """One pass: cells 1 to 3 known, cell 4 decoded, the next n latent -> kinds and ranks of those
    that are present, by their cells."""
    rule = OBJECTIVES[objective]
    kinds = ["known"] * KNOWN
    level = [1 - KNOWN + i for i in range(KNOWN)]
    if not rule.next_token:
        kinds += ["decoded"] + ["latent"] * n
        level += [n + 1, *range(1, n + 1)]
    rank = rule.ranks(torch.tensor([level]), None)
    if rank is None:  # the fast ways to say all 0, and 1, 2, 3, ...
        rank = torch.zeros(1, len(level))
    elif rank is CAUSAL:
        rank = torch.arange(1, len(level) + 1).unsqueeze(0)
    return kinds, rank[0]


def draw_rule(plt):
    """What model.visible() says in decoding, an 8 x 8 matrix for each objective."""
    figure, axes = plt.subplots(3, 3, figsize=(WIDTH, 7.6), layout="constrained",
                                height_ratios=(1, 1, 0.22))
    for axis, (objective, n, words) in zip(axes.flat, PICTURES):
        draw_matrix(axis, *ranks_of(objective, n))
        axis.text(-2, -4.2, objective, va="top", size=12, weight="bold")
        axis.text(-2, -2.9, words, va="top", size=9, color=INK)
    for axis in axes[-1]:
        axis.remove()
    legend = figure.add_subplot(axes[-1, 0].get_gridspec()[-1, :])
    legend.axis("off")
    legend.set(xlim=(-0.8, 24), ylim=(2.6, -0.6))
    kinds = {"known": "known", "decoded": "decoded: unknown, committed\nafter this pass",
             "latent": "latent: unknown, present,\npredicted, not committed",
             "absent": "not in this pass"}
    for i, (kind, words) in enumerate(kinds.items()):
        x = (0, 3.6, 11.4, 18.8)[i]
        legend.add_patch(plt.Rectangle((x, 0), 0.8, 1, color=KINDS[kind]))
        legend.text(x + 1.1, 0.5, words, va="center")
    legend.text(0, 2.1, "A filled square: the row's cell looks at the column's cell, which has "
                "that colour.", va="center")
    figure.suptitle(RULE, size=11, x=0.01, ha="left")
    return figure


def draw_matrix(axis, kinds, rank):
    """Rows look, columns are looked at; the ranks stand on the left."""
    sees, present = visible(rank).tolist(), len(kinds)
    kinds = kinds + ["absent"] * (CELLS - present)
    for q in range(CELLS):
        for at in ((q, -1.15), (-1.15, q)):  # the names of the cells, coloured
            axis.add_patch(_square(at, KINDS[kinds[q]]))
            axis.text(at[0] + 0.5, at[1] + 0.5, q + 1, ha="center", va="center", size=9)
        said = f"{rank[q]:.0f}" if q < present else ""
        axis.text(-1.55, q + 0.5, said, ha="center", va="center", size=9, color=INK)
        for k in range(CELLS):
            inside = q < present and k < present
            color = KINDS[kinds[k]] if inside and sees[q][k] else "white" if inside else "#f4f5f7"
            axis.add_patch(_square((k, q), color))
    axis.text(-1.55, -0.65, "rank", ha="center", va="center", size=9, color=INK)
    axis.set(xlim=(-2.1, 8.1), ylim=(8.1, -4.3), aspect="equal")
    axis.axis("off")


def _square(corner, color):
    from matplotlib.patches import Rectangle
    return Rectangle(corner, 1, 1, facecolor=color, edgecolor="#c3c9d1", linewidth=0.6)
