"""Make the page that holds a model: viewer.html, live.js and a checkpoint's weights in one file.

    python viewer/make_live.py out/live.html                    # the shipped 6x6 checkpoint
    python viewer/make_live.py out/live.html --ckpt FILE

A visitor types a board, chooses n and the order, commits another digit by hand and watches the
model decode again, without a network. The weights are in bf16 (two bytes each, base64), the format
of shipped checkpoints; other weights are rounded to it.
"""
import base64
import json
import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.puzzles import BOX
from plumbing.checkpoint import load_model, write_text
from plumbing.cli import BadInput, Parser, end, path, printable, run
from plumbing.show import refuse_overwriting
from plumbing.trace import PLACE, embed

HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parent / "results/demo-dial/scdm-seed0.pt"
MODEL = '<script type="application/json" id="model"></script>'


def model_text(model, task, config):
    """What live.js needs -> JSON text. Raises BadInput for a model that it cannot run."""
    if config.objective != "scdm" or task.name != "sudoku-gen":
        raise BadInput(f"live.js runs scdm on sudoku-gen, not {config.objective} on {task.name}; "
                       "give another --ckpt")
    weights = {name: value.bfloat16() for name, value in model.state_dict().items()}
    raw = b"".join(value.cpu().view(torch.uint8).numpy().tobytes() for value in weights.values())
    return json.dumps({
        "task": task.name, "objective": config.objective, "side": task.N, "box": BOX[task.N],
        "P": task.P, "K": task.K, "MASK": task.MASK, "BOS": task.BOS,
        "symbols": [task.encoding.decode([i]) for i in range(task.K)],
        "width": config.width, "depth": config.depth, "heads": config.heads, "loops": config.loops,
        "qkNorm": config.qk_norm,
        "weights": [[name, value.numel()] for name, value in weights.items()],
        "data": base64.b64encode(raw).decode("ascii")})


def live_page(text):
    """model_text() -> HTML. (The bytes of bf16 are little-endian, as in every browser.)"""
    page = embed("", PLACE)
    program = (HERE / "live.js").read_text(encoding="utf-8")
    page = page.replace("</body>", f'{MODEL}\n<script nonce="viewer">\n{program}</script>\n</body>')
    return embed(text, MODEL, page)


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("out", type=path, metavar="OUT.html", help="the page to be written")
    p.add_argument("--ckpt", type=path, default=str(SHIPPED), metavar="FILE",
                   help="checkpoint of train.py; default: the shipped 6x6 one")
    args = p.parse_args(argv)
    refuse_overwriting("OUT.html", args.out, "--ckpt", args.ckpt)
    model, task, config = load_model(args.ckpt, torch.device("cpu"))
    page = live_page(model_text(model, task, config))
    write_text(args.out, page)
    print(f"wrote {printable(args.out, 200)}, {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    end(run(main))
