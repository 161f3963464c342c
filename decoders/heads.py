"""Two small heads that learn which cells to commit, on a model that stays as it is.

    B samples   A cells   G copies of one sample   N steps collected   K symbols

filter   Learn2PD (arXiv 2509.25188): is this guess right? Learned from replays that know.
policy   Learning Unmasking Policies (2512.09106): which cells pay? Learned by trial, and by the
         rules of the task as the reward; it sees no answer, in training neither.

Both see confidences alone, and both decode through a Board as every decoder does. They are no rows
of the table: a row needs nothing but a checkpoint, and these need a minute of training first.
decoders/learned.py trains them and puts them beside plain and the best fixed threshold.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from decoders.board import Board, surest
from decoders.oracle import oracle_decode
from model import Block
from plumbing.randomness import sample_keys


def init(head, generator):
    """Draw every weight: matrices with std 1/sqrt(inputs), biases zero."""
    for p in head.parameters():
        std = p.shape[1] ** -0.5 if p.ndim == 2 else 0.0
        nn.init.normal_(p, std=std, generator=generator)
    return head


def step_of(optimizer, loss, clip=1.0):
    """One optimiser step. clip: the largest gradient norm; inf: none."""
    optimizer.zero_grad()
    loss.backward()
    if clip < torch.inf:
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], clip)
    optimizer.step()
    torch.clear_autocast_cache()  # it holds the weights of before the step, in bf16


# --------------------------------------------------------------------------------------------------
# The filter


def odds(confidence, unknown=None):
    """What the model itself says: log-odds that the guess is right. (B, A) -> (B, A), finite.

    As a head for filter_decode() it is the fixed threshold of Fast-dLLM (arXiv 2505.22618).
    """
    return confidence.clamp(1e-7, 1 - 1e-7).logit()


class Filter(nn.Module):
    """Two linear layers on the confidences of all A cells: 2 (A^2 + A) weights.

    The paper has one for a block of 32, used as it is; the ReLU between is not verified there.
    corrects: what the layers say is added to odds(), and they start by saying nothing. On boards,
    where any cell may be the easy one, the paper's form needs far more replays.
    """

    def __init__(self, A, corrects=True):
        super().__init__()
        self.up, self.down, self.corrects = nn.Linear(A, A), nn.Linear(A, A), corrects

    def forward(self, confidence, unknown):
        """confidence (B, A), unknown (B, A) bool -> (B, A): log-odds that the guess is right."""
        x = confidence.masked_fill(~unknown, 1.0)  # what is known is not in doubt
        x = self.down(F.relu(self.up(x)))
        return odds(confidence) + x if self.corrects else x


def filter_decode(board, head, tau=0.96):
    """Commit every cell whose guess is right with a probability above tau, by the head's word.

    tau 0.96: the paper's script. Always at least the surest cell, so that it ends; tau = 1: plain.
    """
    while board.unknown.any():
        logits = board.look()  # (B, A, K)
        confidence = logits.softmax(dim=-1).amax(dim=-1)
        right = head(confidence, board.unknown).sigmoid()  # (B, A)
        cells = (right > tau) | surest(confidence, board.unknown, 1)
        board.commit(cells, board.draw(logits), confidence)
        yield


class Watched(Board):
    """A board that remembers what a decoder saw: unknown, confidence and guess of every look."""

    def look(self):
        logits = super().look()
        confidence, guess = logits.softmax(dim=-1).max(dim=-1)  # (B, A)
        unknown = self.unknown
        self.seen = [*getattr(self, "seen", []),
                     (unknown, confidence, guess.where(unknown, self.symbols))]
        return logits


@torch.no_grad()
def replay(model, task, ranks, start, references, batch_size=128):
    """What EGP meets on its way to the references (B, A) -> confidence, unknown, right: (N, A).

    The paper replays towards the model's own slow answer; here towards the true one, as training
    puzzles have it. Where no guess is right the surest cell gets the answer.
    """
    parts = []
    for i in tqdm(range(0, len(start), batch_size), desc="replays", unit="batch", delay=2,
                  leave=False):
        answers = references[i:i + batch_size]
        board = Watched(model, task, ranks, start[i:i + batch_size], keys=None)
        for _ in oracle_decode(board, answers, force=True):
            pass
        for unknown, confidence, guess in board.seen:
            busy = unknown.any(dim=1)
            parts.append((confidence[busy], unknown[busy], (guess == answers)[busy]))
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def train_filter(confidence, unknown, right, generator, corrects=True, steps=200, batch_size=256):
    """L = BCE(f(c), 1[guess = answer]) over the unknown cells -> a Filter.

    confidence, unknown, right (N, A) from replay(). AdamW 3e-3 as in the paper; not its 40,000
    passes over all data, but few batches: with a few hundred replays more of them overfit.
    """
    device = confidence.device
    head = init(Filter(confidence.shape[1], corrects), generator).to(device)
    if corrects:
        nn.init.zeros_(head.down.weight)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in tqdm(range(steps), desc="filter", delay=2, leave=False):
        pick = torch.randint(len(confidence), (batch_size,), generator=generator, device=device)
        hidden = unknown[pick]
        logits = head(confidence[pick], hidden)[hidden]
        loss = F.binary_cross_entropy_with_logits(logits, right[pick][hidden].float())
        step_of(optimizer, loss, clip=torch.inf)
    return head


# --------------------------------------------------------------------------------------------------
# The policy


class Policy(nn.Module):
    """One transformer block over (log-odds of the confidence, unknown, progress) of each cell.

    No positions: it fits boards of any size. The paper has width 128, and the confidence itself.
    Here the log-odds are also added to what comes out, and the last layer starts at zero: the
    untrained policy commits a cell with the probability that its guess is right.
    """

    def __init__(self, width=32, heads=2):
        super().__init__()
        self.into, self.block = nn.Linear(3, width), Block(width, heads)
        self.out = nn.Linear(width, 1)

    def forward(self, confidence, unknown, progress):
        """(B, A), (B, A) bool, (B, 1) share of the cells known -> (B, A): log-odds to commit."""
        sure = odds(confidence)
        x = torch.stack([sure / 4, unknown.float(), progress.expand_as(sure)], dim=-1)
        x = self.block(self.into(x), None, False, None)  # (B, A, D)
        return sure + self.out(x).squeeze(-1)


def policy_decode(board, head, boost=1.0, trace=None):
    """u ~ Bernoulli(min(1, boost * sigmoid(b))) for every unknown cell; none: the largest b.

    boost is the paper's dial at test time: 0 commits one cell per pass. trace: a list that receives
    what head saw and did at each step.
    """
    while board.unknown.any():
        logits, unknown = board.look(), board.unknown
        confidence = logits.softmax(dim=-1).amax(dim=-1)  # (B, A)
        seen = confidence, unknown, 1 - unknown.float().mean(dim=1, keepdim=True)
        b = head(*seen)
        act = unknown & (board.noise() < boost * b.sigmoid())
        none = ~act.any(dim=1, keepdim=True)
        if trace is not None:
            trace.append((*seen, act))
        board.commit(act | surest(b, unknown & none, 1), board.draw(logits), confidence)
        yield


def policy_reward(solved, steps, most, alpha, additive=False):
    """R = solved (1 - steps/most)^alpha: a fast wrong answer is worth nothing. All (B,) -> (B,).

    additive: solved + alpha (1 - steps/most), which the paper warns of: being fast pays in any
    case. (Its exact form is not verified.)
    """
    speed = 1 - steps / most
    return solved + alpha * speed if additive else solved * speed ** alpha


def centred(R, dim):
    """R - mean of R over dim; exactly 0 where all are equal: nothing is learned from rounding."""
    same = R.amax(dim, keepdim=True) == R.amin(dim, keepdim=True)
    return (R - R.mean(dim, keepdim=True)).masked_fill(same, 0.0)


def policy_loss(log_prob, old, advantage, clip=0.2):
    """PPO: -min(rho A, clip(rho, 1 -+ clip) A), rho = exp(log_prob - old). Any one shape."""
    rho = (log_prob - old).exp()
    return -torch.minimum(rho * advantage, rho.clamp(1 - clip, 1 + clip) * advantage)


def log_prob_of(head, confidence, unknown, progress, act):
    """log prod_i s_i^u_i (1 - s_i)^(1 - u_i) over the unknown cells of each step: (N, A) -> (N,).

    The cell that is committed because nobody acted is not an action.
    """
    b = head(confidence, unknown, progress)
    nll = F.binary_cross_entropy_with_logits(b, act.float(), reduction="none")
    return -(nll * unknown).sum(dim=1)


def train_policy(model, task, ranks, start, generator, updates=60, prompts=8, G=8, alpha=1.0,
                 additive=False, epochs=2, lr=3e-3, log=None):
    """GRPO: A = R - mean of R over the G copies of a prompt -> a Policy.

    start (B, S): training puzzles, `prompts` of them per update. G = 8, no KL term: the paper's.
    Every step of a copy has its advantage. log: a list that receives (mean R, solved, steps).
    """
    head = init(Policy(), generator).to(start.device)
    nn.init.zeros_(head.out.weight)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=0.0)
    bar = tqdm(range(updates), desc="policy", delay=2, leave=False)
    for update in bar:
        pick = torch.randint(len(start), (prompts,), generator=generator, device=start.device)
        rows = start[pick].repeat_interleave(G, dim=0)  # (prompts * G, S)
        board, trace = Board(model, task, ranks, rows, sample_keys(update, rows, True)), []
        with torch.no_grad():
            for _ in policy_decode(board, head, trace=trace):
                pass
        solved = task.check(rows, board.symbols).float()
        R = policy_reward(solved, board.nfe, task.blanks(rows).sum(dim=1), alpha, additive)
        A = centred(R.view(-1, G), dim=1).flatten()
        bar.set_postfix(R=R.mean().item(), solved=solved.mean().item(),
                        steps=board.nfe.double().mean().item())
        if log is not None:
            log.append((R.mean().item(), solved.mean().item(), board.nfe.double().mean().item()))
        A = A.repeat(len(trace))  # (N,): every step of every copy
        trace = [torch.cat(part) for part in zip(*trace, strict=True)]
        use = trace[1].any(dim=1) & (A != 0)
        if not use.any():  # constant rewards teach nothing
            continue
        A, trace = A[use], [part[use] for part in trace]
        with torch.no_grad():
            old = log_prob_of(head, *trace)
        for _ in range(epochs):
            loss = policy_loss(log_prob_of(head, *trace), old, A).sum() / len(rows)
            step_of(optimizer, loss)
    return head
