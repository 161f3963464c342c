"""ADJUST: between whole passes one light layer, so that the next cell knows of the last one.

    python -m decoders.adjust --ckpt out/s4/ckpt.pt        # of objective mdm or sidm, on boards

    B samples   P prompt positions   A cells   S = P + A   D width   K symbols

Cells committed in one pass are drawn independently. Committing them one by one, with one trained
layer in place of the pass between, draws the second nearly given the first, for a fraction of the
cost. The layer is trained here and not kept, so this is no row of DECODERS. On boards of 4x4, where
all 288 are known, the total variation to the uniform distribution is reported too.
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import copy

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from data.puzzles import all_boards_4x4
from decoders import OBJECTIVES_DECODED, finish
from decoders.board import Board, certainty, rank_of, surest
from decoders.exact import fitting, null_distribution, total_variation
from decoders.heads import init
from decoders.plain import plain
from metrics import wilson
from model import Block
from objectives import OBJECTIVES
from plumbing.checkpoint import load_model
from plumbing.cli import DEVICES, BadInput, Parser, choose_device, end, number, path, run, say
from plumbing.randomness import sample_keys

ROWS = 512  # samples at once
EXTRAS = (1, 3, 7)  # cells after the first of a round


class Layer(nn.Module):
    """h' = Block(W [embedding; h]), normed as the head wants it.

    It starts as h beside a random mixture of the embeddings. With these at weight 0, where
    h' = h, it learns nothing for hundreds of steps (LOG.md).
    """

    def __init__(self, width, heads, generator):
        super().__init__()
        self.join, self.block = nn.Linear(2 * width, width, bias=False), Block(width, heads)
        init(self, generator)
        nn.init.zeros_(self.block.attn.proj.weight)  # the block starts as the identity
        nn.init.zeros_(self.block.down.weight)
        with torch.no_grad():
            self.join.weight[:, width:] = torch.eye(width)  # h as it is

    def forward(self, embedded, hidden):
        """(B, S, D) of the tokens as they are now, (B, S, D) -> (B, S, D)."""
        x = self.join(torch.cat([embedded, hidden], dim=-1))
        x = self.block(x, None, False, None)
        return F.rms_norm(x, x.shape[-1:])


def trunk_of(model):
    """A model without its head: tokens, positions, rank -> (B, S, D), as the head sees it."""
    trunk = copy.deepcopy(model)
    trunk.head = nn.Identity()
    return trunk


def embed(model, tokens, positions):
    return model.token(tokens) + model.position(positions)  # (B, S, D)


def adjust(board, trunk, layer, extra=3, order="random"):
    """Approximate joint sampling, ADJUST (arXiv 2509.22738): extra = 3, as its first version has.

    h = trunk(x);   then `extra` times  x_i ~ head(h)_i,  h <- layer(embedding(x), h)

    extra = 0 is plain. board.nfe and board.fed count whole passes, not the layers. Source: the
    abstract and notes on the released code; nothing else is verified.
    """
    model, P, step = board.model, board.task.P, 0
    while board.unknown.any():
        if step % (extra + 1) == 0:
            board.pay(board.unfinished(), board.task.S)
            hidden = trunk(board.tokens, board.positions, board.rank(board.tokens))
        else:
            hidden = layer(embed(model, board.tokens, board.positions), hidden)
        logits = model.head(hidden)[:, P:].float()  # (B, A, K)
        probs = logits.softmax(dim=-1)
        score = board.noise() if order == "random" else certainty(probs, order)
        cells = surest(score, board.unknown, 1)
        board.commit(cells, board.draw(logits), probs.amax(dim=-1))
        step += 1
        yield


def layer_loss(model, trunk, layer, task, ranks, answers, turn, known, extra, weight):
    """sum over j = 1 .. extra of  KL(p_j | q_j) + weight SmoothL1(h_j, trunk(x_j)),  a scalar.

    answers (B, S); turn (B, A): 0, 1, 2, ... in the order of decoding; known (B, 1): x_0 has so
    many cells, x_j has j more. p: the frozen model on x_j; q: the head on h_j. Means over the
    cells that are still unknown.
    """
    positions = torch.arange(task.S, device=answers.device)
    loss = 0.0
    for j in range(extra + 1):
        unknown = turn >= known + j  # (B, A)
        cells = answers[:, task.P:].masked_fill(unknown, task.MASK)
        tokens = torch.cat([answers[:, :task.P], cells], dim=1)
        with torch.no_grad():
            true = trunk(tokens, positions, rank_of(ranks, task, tokens))  # (B, S, D)
        if j == 0:
            hidden = true
            continue
        hidden = layer(embed(model, tokens, positions), hidden)
        log_p, log_q = (model.head(h)[:, task.P:].float().log_softmax(dim=-1)
                        for h in (true, hidden))
        kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1)  # (B, A)
        apart = F.smooth_l1_loss(hidden.float(), true.float(), reduction="none").mean(dim=-1)
        each = (kl + weight * apart[:, task.P:]) * unknown
        loss = loss + each.sum() / unknown.sum().clamp(min=1)
    return loss


def train_layer(model, trunk, task, ranks, answers, autocast, seed=0, extra=7, steps=2000,
                weight=0.1, batch_size=128, lr=3e-3):
    """answers (N, S) that the model drew itself -> a trained Layer. The model stays as it is.

    The number of layers in a row is drawn from 1 .. extra. By notes on the paper: that, weight 0.1
    to 1, lr 5e-5, batch 32, and an order by entropy (here random, as the boards are made).
    """
    A, device = task.A, answers.device
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same on all devices
    width, heads = model.token.embedding_dim, model.blocks[0].attn.heads
    layer = Layer(width, heads, generator).to(device)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=lr, weight_decay=0.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(steps), desc="layer", delay=2, leave=False):
        pick = torch.randint(len(answers), (batch_size,), generator=generator).to(device)
        turn = torch.rand(batch_size, A, generator=generator).argsort(dim=1).to(device)
        known = torch.randint(A, (batch_size, 1), generator=generator).to(device)
        layers = int(torch.randint(1, extra + 1, (), generator=generator))
        with autocast:  # anew for each step: it keeps the weights of its first one
            loss = layer_loss(model, trunk, layer, task, ranks, answers[pick], turn, known, layers,
                              weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()
    return layer


@torch.no_grad()
def boards_of(model, task, ranks, start, seed, autocast, loop):
    """Decode start (N, S) by loop(board) at T = 1 -> tokens (N, S), mean passes."""
    keys, parts, nfe = sample_keys(seed, start, copies_differ=True), [], 0
    for i in tqdm(range(0, len(start), ROWS), desc="boards", delay=2, leave=False):
        board = Board(model, task, ranks, start[i:i + ROWS], keys[i:i + ROWS], temperature=1.0)
        with autocast:
            finish(board, loop(board))
        parts.append(board.tokens)
        nfe += int(board.nfe.sum())
    return torch.cat(parts), nfe / len(start)


def share_of_pass(model, layer):
    """What one call of the layer costs, in passes: by the weights that a token meets, with the
    head in both."""
    head = model.head.weight.numel()
    blocks = model.loops * sum(p.numel() for p in model.blocks.parameters())
    return (sum(p.numel() for p in layer.parameters()) + head) / (blocks + head)


def report(name, task, tokens, nfe, layers, share):
    """One line about answers (N, S). layers: calls of the layer per sample, each share passes."""
    num = len(tokens)
    solved = int(task.check(tokens, tokens[:, task.P:]).sum())
    low, high = (100 * rate for rate in wilson(solved, num))
    line = (f"{name:26} {nfe:4.1f} passes {layers:3} layers, {nfe + layers * share:4.1f} together: "
            f"solved {solved}/{num} ({low:.1f}-{high:.1f} %)")
    if task.A == 16:
        members = torch.tensor(all_boards_4x4(), device=tokens.device)
        counts = fitting(tokens[:, task.P:], members, task.K).sum(dim=0)
        line += f", TV {total_variation(counts, num).item():.3f}"
    print(line, flush=True)


def main(argv=None):
    p = Parser(__doc__, prog="python -m decoders.adjust")
    p.add_argument("--ckpt", type=path, required=True, metavar="FILE",
                   help="checkpoint of objective mdm or sidm, task sudoku-gen")
    p.add_argument("--num", type=number(1, 100_000), default=2000, help="samples; default 2000")
    p.add_argument("--steps", type=number(1, 1_000_000), default=2000,
                   help="of the layer's training; default 2000")
    p.add_argument("--answers", type=number(1, 100_000), default=2000,
                   help="samples to train on; default 2000")
    p.add_argument("--seed", type=number(0, 2**32), default=0, help="default 0")
    p.add_argument("--device", choices=DEVICES, default="auto", help="where to run")
    args = p.parse_args(argv)
    device, autocast, reason = choose_device(args.device)
    model, task, config = load_model(args.ckpt, device)
    if config.objective not in OBJECTIVES_DECODED or task.name != "sudoku-gen":
        raise BadInput(f"--ckpt {args.ckpt}: {config.objective} on {task.name}; needed is "
                       f"{' or '.join(OBJECTIVES_DECODED)} on sudoku-gen, boards from nothing")
    say(reason)
    model.eval().requires_grad_(False)
    trunk, ranks = trunk_of(model), OBJECTIVES[config.objective].ranks
    start = task.test_set(1)[0].to(device)
    own, _ = boards_of(model, task, ranks, start.expand(args.answers, -1), args.seed + 1, autocast,
                       lambda board: plain(board, 1, "random"))
    layer = train_layer(model, trunk, task, ranks, own, autocast, args.seed, max(EXTRAS),
                        args.steps)
    if task.A == 16:
        mean, low, high = null_distribution(len(all_boards_4x4()), args.num, args.seed)
        print(f"TV of as many true draws: {mean:.3f} (95 %: {low:.3f}-{high:.3f})", flush=True)
    share = share_of_pass(model, layer)
    loops = [("one by one", lambda board: plain(board, 1, "random"), False)]
    for extra in EXTRAS:
        loops += [(f"{extra + 1} a pass, marginals",
                   lambda board, k=extra + 1: plain(board, k, "random"), False),
                  (f"{extra + 1} a pass, with the layer",
                   lambda board, extra=extra: adjust(board, trunk, layer, extra), True)]
    for name, loop, layered in loops:
        tokens, nfe = boards_of(model, task, ranks, start.expand(args.num, -1), args.seed, autocast,
                                loop)
        report(name, task, tokens, nfe, task.A - round(nfe) if layered else 0, share)


if __name__ == "__main__":
    end(run(main))
