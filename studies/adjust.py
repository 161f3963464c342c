"""ADJUST: one light layer between whole passes, so that the next cell knows the last one.

    python -m studies.adjust --ckpt out/s4/ckpt.pt        # of objective mdm or sidm, on boards

    B samples   P prompt positions   A cells   S = P + A   D width   K symbols

Cells committed in one pass are sampled independently. Here they are committed one by one with a
trained layer in place of the pass between: the second is sampled nearly given the first, at a
fraction of the cost. The layer is trained here and not kept. On 4x4 boards, all 288 of which are
known, the total variation distance to the uniform distribution is reported as well.
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import copy

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from data.puzzles import all_boards_4x4
from decoders.board import certainty, rank_of, top_cells
from decoders.plain import plain
from model import Block
from noise import sample_keys
from plumbing.cli import Parser, choose_device, end, number, run, say
from studies.common import add_flags, decode_boards, interval_text, load
from studies.exact import fitting, null_distribution, total_variation
from studies.heads import init, step_of

ROWS = 512  # samples at once
EXTRAS = (1, 3, 7)  # cells after the first one of a round


class Layer(nn.Module):
    """h' = Block(W [embedding; h]), normalised as the head expects it.

    It starts as h plus a random mixture of the embeddings. With these at weight 0, where h' = h, it
    learns nothing for hundreds of steps (LOG.md).
    """

    def __init__(self, width, heads, generator):
        super().__init__()
        self.join, self.block = nn.Linear(2 * width, width, bias=False), Block(width, heads)
        init(self, generator)
        nn.init.zeros_(self.block.attn.proj.weight)  # the block starts as the identity
        nn.init.zeros_(self.block.down.weight)
        with torch.no_grad():
            self.join.weight[:, width:] = torch.eye(width)  # h unchanged

    def forward(self, embedded, hidden):
        """(B, S, D) of the tokens as they are now, (B, S, D) -> (B, S, D)."""
        x = self.join(torch.cat([embedded, hidden], dim=-1))
        x = self.block(x, None, False, None)
        return F.rms_norm(x, x.shape[-1:])


def trunk_of(model):
    """A model without its head: tokens, positions, rank -> (B, S, D), the input of the head."""
    trunk = copy.deepcopy(model)
    trunk.head = nn.Identity()
    return trunk


def embed(model, tokens, positions):
    return model.token(tokens) + model.position(positions)  # (B, S, D)


def adjust(board, trunk, layer, extra=3, order="random"):
    """Approximate joint sampling, ADJUST (arXiv 2509.22738): extra = 3, as its first version has.

    h = trunk(x);   then `extra` times  x_i ~ head(h)_i,  h <- layer(embedding(x), h)

    extra = 0 equals plain. board.nfe and board.pairs count whole passes, not the layers. Source:
    the abstract and notes on the released code; nothing else is verified.
    """
    model, P, step = board.model, board.task.P, 0
    while board.unknown.any():
        if step % (extra + 1) == 0:
            board.charge(board.unfinished(), board.task.S)
            hidden = trunk(board.tokens, board.positions, board.rank(board.tokens))
        else:
            hidden = layer(embed(model, board.tokens, board.positions), hidden)
        logits = model.head(hidden)[:, P:].float()  # (B, A, K)
        probs = logits.softmax(dim=-1)
        score = board.noise() if order == "random" else certainty(probs, order)
        cells = top_cells(score, board.unknown, 1)
        board.commit(cells, board.sample(logits), probs.amax(dim=-1))
        step += 1
        yield


def layer_loss(model, trunk, layer, task, ranks, answers, level, known, extra, weight):
    """sum over j = 1 .. extra of  KL(p_j | q_j) + weight SmoothL1(h_j, trunk(x_j)),  a scalar.

    answers (B, S); level (B, A): 0, 1, 2, ... in the order of decoding; known (B, 1): the number
    of cells known in x_0; x_j has j more. p: the frozen model on x_j; q: the head on h_j. Means
    over the cells that are still unknown.
    """
    positions = torch.arange(task.S, device=answers.device)
    loss = 0.0
    for j in range(extra + 1):
        unknown = level >= known + j  # (B, A)
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
    """answers (N, S) sampled by the model itself -> a trained Layer. The model stays frozen.

    The number of layers in a row is drawn from 1 .. extra. Notes on the paper: the same, weight 0.1
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
        level = torch.rand(batch_size, A, generator=generator).argsort(dim=1).to(device)
        known = torch.randint(A, (batch_size, 1), generator=generator).to(device)
        layers = int(torch.randint(1, extra + 1, (), generator=generator))
        with autocast:  # entered at each step: it caches the weights of the first one
            loss = layer_loss(model, trunk, layer, task, ranks, answers[pick], level, known, layers,
                              weight)
        step_of(optimizer, loss, clip=torch.inf)
        cosine.step()
    return layer


def layer_cost(model, layer):
    """The cost of one call of the layer in passes: the ratio of the weights that a token meets,
    the head included in both."""
    head = model.head.weight.numel()
    blocks = model.loops * sum(p.numel() for p in model.blocks.parameters())
    return (sum(p.numel() for p in layer.parameters()) + head) / (blocks + head)


def report(name, task, tokens, nfe, layers, cost):
    """One line about answers (N, S). layers: calls of the layer per sample, each worth `cost`."""
    num = len(tokens)
    solved = int(task.check(tokens, tokens[:, task.P:]).sum())
    line = (f"{name:26} {nfe:4.1f} passes {layers:3} layers, {nfe + layers * cost:4.1f} together: "
            f"solved {interval_text(solved, num)}")
    if task.A == 16:
        counts = fitting(tokens[:, task.P:], torch.tensor(all_boards_4x4()), task.K).sum(dim=0)
        line += f", TV {total_variation(counts, num).item():.3f}"
    print(line, flush=True)


def main(argv=None):
    p = Parser(__doc__, prog="python -m studies.adjust")
    add_flags(p, 2000, 100_000, ckpt="checkpoint of objective mdm or sidm, task sudoku-gen")
    p.add_argument("--steps", type=number(1, 1_000_000), default=2000,
                   help="of the layer's training; default 2000")
    p.add_argument("--answers", type=number(1, 100_000), default=2000,
                   help="samples to train on; default 2000")
    args = p.parse_args(argv)
    device, autocast, reason = choose_device(args.device)
    model, task, _, ranks = load(args.ckpt, device, lambda task: task.name == "sudoku-gen",
                                 "sudoku-gen, boards from nothing")
    say(reason)
    trunk, empty = trunk_of(model), task.test_set(1)[0].to(device)

    def boards(num, seed, loop):
        """-> `num` boards sampled at T = 1 by loop(board), (num, S), and their mean passes."""
        start = empty.expand(num, -1)
        keys = sample_keys(seed, start, copies_differ=True)
        with autocast:
            tokens, stats, _ = decode_boards(model, task, ranks, start, keys,
                                             lambda board, _: loop(board), 1.0, ROWS)
        return tokens, stats["nfe"].double().mean().item()

    def in_random_order(k):
        return lambda board: plain(board, k, "random")

    own, _ = boards(args.answers, args.seed + 1, in_random_order(1))
    layer = train_layer(model, trunk, task, ranks, own.to(device), autocast, args.seed, max(EXTRAS),
                        args.steps)
    if task.A == 16:
        mean, low, high = null_distribution(len(all_boards_4x4()), args.num, args.seed)
        print(f"TV of as many true samples: {mean:.3f} (95 %: {low:.3f}-{high:.3f})", flush=True)
    loops = [("one by one", in_random_order(1), False)]
    for extra in EXTRAS:
        loops += [(f"{extra + 1} a pass, marginals", in_random_order(extra + 1), False),
                  (f"{extra + 1} a pass, with the layer",
                   lambda board, extra=extra: adjust(board, trunk, layer, extra), True)]
    for name, loop, layered in loops:
        tokens, nfe = boards(args.num, args.seed, loop)
        report(name, task, tokens, nfe, task.A - round(nfe) if layered else 0,
               layer_cost(model, layer))


if __name__ == "__main__":
    end(run(main))
