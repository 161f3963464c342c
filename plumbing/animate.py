"""The README's moving picture: the same board filled without and with latents, side by side.

    N board side   K symbols   t step

It draws what traces say (plumbing/trace.py); who wants to look closer opens viewer/viewer.html.
"""
import base64
from pathlib import Path

from data.puzzles import peers
from plumbing.checkpoint import replace_file
from plumbing.cli import BadInput

FRAMES_PER_SECOND, HOLD = 3, 9  # the last frame stays for HOLD frames
INK, BLUE, GRID, AMBER, RED = "#16191d", "#0b559f", "#858d98", "#ffe08a", "#fde4dd"


def animate(columns, file):
    """columns: [(title, trace of one board)], of equally many steps -> a GIF. Raises BadInput."""
    try:
        import matplotlib
        from matplotlib.animation import PillowWriter
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
        writer = PillowWriter(fps=FRAMES_PER_SECOND)
    except ImportError:
        raise BadInput("--animate needs matplotlib; "
                       "install it with: pip install matplotlib") from None
    figure, axes = plt.subplots(1, len(columns), figsize=(3.5 * len(columns), 4.2), dpi=90)
    steps = len(columns[0][1]["samples"][0]["steps"])
    temporary = Path(f"{file}.gif")
    try:
        with writer.saving(figure, temporary, dpi=90):
            for t in [*range(1, steps + 1), *[steps] * HOLD]:
                for axis, (title, trace) in zip(axes, columns):
                    draw(axis, title, trace, t)
                figure.subplots_adjust(left=0.02, right=0.98, top=0.9, bottom=0.1, wspace=0.06)
                writer.grab_frame()
        replace_file(file, lambda f: f.write(temporary.read_bytes()))
    finally:
        temporary.unlink(missing_ok=True)
        plt.close(figure)


def draw(axis, title, trace, t):
    """The board as it is after step t, with the pencil marks of that step."""
    axis.clear()
    task, one, names = trace["task"], trace["samples"][0], trace["symbols"]
    N, (h, w), steps = task["side"], task["box"], one["steps"][:t]
    board = dict(pair for step in steps for pair in step["set"])  # {cell: symbol}
    now = dict(steps[-1]["set"])
    guesses = predictions(task, steps[-1], len(names))
    for cell in range(N * N):
        y, x = divmod(cell, N)
        if cell in board:
            wrong = any(board.get(p) == board[cell] for p in peers(N)[cell])
            if wrong or cell in now:
                axis.fill([x, x + 1, x + 1, x], [y, y, y + 1, y + 1], RED if wrong else AMBER)
            axis.text(x + 0.5, y + 0.53, names[board[cell]], ha="center", va="center", fontsize=17,
                      weight="bold", color="#a3200d" if wrong else INK if cell in now else BLUE)
            if wrong:  # not by colour alone
                axis.text(x + 0.84, y + 0.2, "×", ha="center", va="center", color="#a3200d")
        elif cell in guesses:
            pencil(axis, x, y, guesses[cell], names, h, w)
        else:
            axis.fill([x, x + 1, x + 1, x], [y, y, y + 1, y + 1], facecolor="white",
                      edgecolor="#c3c9d1", hatch="////", linewidth=0)
    for i in range(N + 1):
        axis.plot([0, N], [i, i], color=INK if i % h == 0 else GRID, lw=2 if i % h == 0 else 0.6)
        axis.plot([i, i], [0, N], color=INK if i % w == 0 else GRID, lw=2 if i % w == 0 else 0.6)
    axis.set(xlim=(-0.05, N + 0.05), ylim=(N + 0.05, -0.05), aspect="equal")
    axis.axis("off")
    axis.set_title(title, fontsize=12, weight="bold", color=INK)
    axis.text(N / 2, N + 0.25, caption(one, steps), ha="center", va="top", fontsize=10, color=INK)


def predictions(task, step, K):
    """{cell: its K probabilities} of a step."""
    probs, found = base64.b64decode(step["probs"]), {}
    for q, position in enumerate(p for p, letter in enumerate(step["who"]) if letter in "lcn"):
        found[position - task["P"]] = [p / 255 for p in probs[q * K:(q + 1) * K]]
    return found


def pencil(axis, x, y, probs, names, h, w):
    """The digits of a cell that is not filled, each in its place, sized by its probability."""
    for k, p in enumerate(probs):
        row, column = divmod(k, w)
        if p > 0.02:
            near = p ** 4  # a sure one comes to the middle
            across = (column + 0.5) / w * (1 - near) + 0.5 * near
            down = (row + 0.5) / h * (1 - near) + 0.5 * near
            axis.text(x + 0.06 + 0.88 * across, y + 0.06 + 0.88 * down + 0.02, names[k],
                      ha="center", va="center", fontsize=5 + 10 * p, color=INK,
                      alpha=min(1, 0.45 + 0.9 * p))


def caption(one, steps):
    tokens = sum(step["tokens"] for step in steps)
    text = f"pass {len(steps)} of {len(one['steps'])}, {tokens:,} tokens"
    if len(steps) < len(one["steps"]):
        return text
    count = len(one["mistakes"])
    end = "valid" if one["solved"] else f"{count} mistake{'s' if count > 1 else ''}"
    return f"{text}: {end}"
