"""Two small heads that learn which cells to commit, on a model that stays frozen.

    B samples   A cells   G copies of one sample   N steps collected   K symbols

filter   Learn2PD (arXiv 2509.25188): is this guess right? Learned from replays with the answers.
policy   Learning Unmasking Policies (2512.09106): which cells pay off? Learned by trial and error,
         with the rules of the task as the reward; it reads no answer, not even in training.

Both see only confidences. They are not in the table of decoders because they need a minute of
training first: studies/learned.py trains them and compares them with plain and fixed thresholds.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from decoders.board import Board, top_cells
from model import Block
from noise import sample_keys
from studies.oracle import oracle_decode


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
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], clip)
    optimizer.step()
    torch.clear_autocast_cache()  # it holds the old weights in bf16


def odds(confidence, unknown=None):
    """The model's own log-odds that the guess is right. (B, A) -> (B, A), finite.

    As a head for filter_decode() it is the fixed threshold of Fast-dLLM (arXiv 2505.22618).
    """
    return confidence.clamp(1e-7, 1 - 1e-7).logit()


class Filter(nn.Module):
    """Two linear layers on the confidences of all A cells: 2 (A^2 + A) weights.

    The paper uses the output directly, for a block of 32; its ReLU is not verified. corrects: the
    output is added to odds() and starts at zero; the paper's form needs far more replays here.
    """

    def __init__(self, A, corrects=True):
        super().__init__()
        self.up, self.down, self.corrects = nn.Linear(A, A), nn.Linear(A, A), corrects

    def forward(self, confidence, unknown):
        """confidence (B, A), unknown (B, A) bool -> (B, A): log-odds that the guess is right."""
        x = confidence.masked_fill(~unknown, 1.0)  # known cells are certain
        x = self.down(F.relu(self.up(x)))
        return odds(confidence) + x if self.corrects else x


def filter_decode(board, head, tau=0.96):
    """Commit every cell whose guess is right with a probability above tau, as the head predicts.

    tau 0.96: the paper's script. The most confident cell is always committed; tau = 1 equals plain.
    """
    while board.unknown.any():
        logits = board.forward()  # (B, A, K)
        confidence = logits.softmax(dim=-1).amax(dim=-1)
        right = head(confidence, board.unknown).sigmoid()  # (B, A)
        cells = (right > tau) | top_cells(confidence, board.unknown, 1)
        board.commit(cells, board.sample(logits), confidence)
        yield


class Watched(Board):
    """A board that keeps what a decoder saw: unknown, confidence and guess of every pass."""

    def forward(self):
        logits = super().forward()
        confidence, guess = logits.softmax(dim=-1).max(dim=-1)  # (B, A)
        unknown = self.unknown
        self.seen = [*getattr(self, "seen", []),
                     (unknown, confidence, guess.where(unknown, self.symbols))]
        return logits


@torch.no_grad()
def replay(model, task, ranks, start, references, batch_size=128):
    """What EGP meets on its way to the references (B, A) -> confidence, unknown, right: (N, A).

    Where no guess is right the most confident cell gets the answer. The paper replays towards the
    model's own slow answer, here towards the true one.
    """
    parts = []
    for rows in tqdm(torch.arange(len(start)).split(batch_size), desc="replays", unit="batch",
                     delay=2, leave=False):
        answers = references[rows]
        board = Watched(model, task, ranks, start[rows], keys=None)
        for _ in oracle_decode(board, answers, force=True):
            pass
        for unknown, confidence, guess in board.seen:
            busy = unknown.any(dim=1)
            parts.append((confidence[busy], unknown[busy], (guess == answers)[busy]))
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def train_filter(confidence, unknown, right, generator, corrects=True, steps=200, batch_size=256):
    """L = BCE(f(c), 1[guess = answer]) over the unknown cells -> a Filter.

    confidence, unknown, right (N, A) from replay(). AdamW 3e-3 as in the paper, but few batches
    instead of 40,000 epochs: with a few hundred replays more of them overfit.
    """
    device = confidence.device
    head = init(Filter(confidence.shape[1], corrects), generator).to(device)
    if corrects:
        nn.init.zeros_(head.down.weight)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in tqdm(range(steps), desc="filter", delay=2, leave=False):
        pick = torch.randint(len(confidence), (batch_size,), generator=generator, device=device)
        scored = unknown[pick]
        logits = head(confidence[pick], scored)[scored]
        loss = F.binary_cross_entropy_with_logits(logits, right[pick][scored].float())
        step_of(optimizer, loss, clip=torch.inf)
    return head


class Policy(nn.Module):
    """One transformer block over (log-odds of the confidence, unknown, progress) of each cell.

    No positions: it fits boards of any size. The paper has width 128 and the confidence itself.
    Here the log-odds are added to the output, whose layer starts at zero: the untrained policy
    commits a cell with the probability that its guess is right.
    """

    def __init__(self, width=32, heads=2):
        super().__init__()
        self.into, self.block = nn.Linear(3, width), Block(width, heads)
        self.out = nn.Linear(width, 1)

    def forward(self, confidence, unknown, progress):
        """(B, A), (B, A) bool, (B, 1) fraction of known cells -> (B, A): log-odds to commit."""
        own = odds(confidence)
        x = torch.stack([own / 4, unknown.float(), progress.expand_as(own)], dim=-1)
        x = self.block(self.into(x), None, False, None)  # (B, A, D)
        return own + self.out(x).squeeze(-1)


def policy_decode(board, head, boost=1.0, trace=None):
    """u ~ Bernoulli(min(1, boost * sigmoid(b))) for every unknown cell; none: the largest b.

    boost is the paper's parameter at test time: 0 commits one cell per pass. trace: a list that
    receives the input and the action of head at each step.
    """
    while board.unknown.any():
        logits, unknown = board.forward(), board.unknown
        confidence = logits.softmax(dim=-1).amax(dim=-1)  # (B, A)
        seen = confidence, unknown, 1 - unknown.float().mean(dim=1, keepdim=True)
        b = head(*seen)
        act = unknown & (board.noise() < boost * b.sigmoid())
        none = ~act.any(dim=1, keepdim=True)
        if trace is not None:
            trace.append((*seen, act))
        board.commit(act | top_cells(b, unknown & none, 1), board.sample(logits), confidence)
        yield


def policy_reward(solved, steps, most, alpha, additive=False):
    """R = solved (1 - steps/most)^alpha: a fast wrong answer is worth nothing. All (B,) -> (B,).

    additive: solved + alpha (1 - steps/most), which the paper warns of: speed pays off in any case.
    (Its exact form is not verified.)
    """
    speed = 1 - steps / most
    return solved + alpha * speed if additive else solved * speed ** alpha


def centred(R, dim):
    """R - mean of R over dim; exactly 0 where all are equal, so that rounding teaches nothing."""
    same = R.amax(dim, keepdim=True) == R.amin(dim, keepdim=True)
    return (R - R.mean(dim, keepdim=True)).masked_fill(same, 0.0)


def policy_loss(log_prob, old, advantage, clip=0.2):
    """PPO: -min(rho A, clip(rho, 1 -+ clip) A), rho = exp(log_prob - old). Any one shape."""
    rho = (log_prob - old).exp()
    return -torch.minimum(rho * advantage, rho.clamp(1 - clip, 1 + clip) * advantage)


def log_prob_of(head, confidence, unknown, progress, act):
    """log prod_i s_i^u_i (1 - s_i)^(1 - u_i) over the unknown cells of each step: (N, A) -> (N,).

    The cell that is committed because no cell acted is not an action.
    """
    b = head(confidence, unknown, progress)
    nll = F.binary_cross_entropy_with_logits(b, act.float(), reduction="none")
    return -(nll * unknown).sum(dim=1)


def train_policy(model, task, ranks, start, generator, updates=60, prompts=8, G=8, alpha=1.0,
                 additive=False, epochs=2, lr=3e-3, log=None):
    """GRPO: A = R - mean of R over the G copies of a prompt -> a Policy.

    start (B, S): training puzzles, `prompts` of them per update. G = 8 and no KL term: the paper's.
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
        means = R.mean().item(), solved.mean().item(), board.nfe.double().mean().item()
        bar.set_postfix(dict(zip(("R", "solved", "steps"), means)))
        if log is not None:
            log.append(means)
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
