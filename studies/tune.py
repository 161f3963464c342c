"""Two losses that make the model itself decode well in few passes; they train a copy of it.

    B samples   G copies of one sample   A cells   K symbols   N passes of a decode

certainty   dParallel (arXiv 2509.26488): sharpen the guesses that are already right.
mdpo        MDPO (arXiv 2508.13148): reward every pass by how good its complete guess is.
"""
import copy

import torch
import torch.nn.functional as F
from tqdm import tqdm

from decoders.board import Board, top_cells
from noise import sample_keys
from studies.heads import centred, policy_loss, step_of


def predict(model, task, ranks, tokens):
    """tokens (B, S) -> logits (B, A, K), as board.predict(), with gradients."""
    rows = torch.arange(len(tokens), device=tokens.device)
    return Board(model, task, ranks, tokens, keys=None).predict(tokens, rows)


def mean_over(values, cells):
    """The mean over each sample's cells, 0 where it has none: (B, A), bool (B, A) -> (B,)."""
    return (values * cells).sum(dim=1) / cells.sum(dim=1).clamp(min=1)


def certainty_loss(logits, answers, masked, beta=2.0, T=0.5):
    """CE over the masked cells + beta * H(softmax(logits / T)) over those already guessed right.

    logits (B, A, K), answers (B, A), masked (B, A) bool -> (B,) nats, each a mean over its cells.
    beta 2 and T 0.5 are the paper's; beta = 0 is plain training. A wrong guess is not sharpened.
    """
    nll = F.cross_entropy(logits.transpose(1, 2), answers, reduction="none")  # (B, A)
    right = masked & (logits.argmax(dim=-1) == answers)
    log_probs = (logits / T).log_softmax(dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)  # (B, A)
    return mean_over(nll, masked) + beta * mean_over(entropy, right)


def tune_certainty(model, task, ranks, start, answers, generator, beta=2.0, steps=60,
                   batch_size=32, lr=1e-4):
    """-> a tuned copy. start (B, S): training puzzles, answers (B, A): the model's own.

    Half of the blanks are masked, and in a second row the other half: complementary masks. All
    weights are trained, by AdamW at 1e-4; the paper's LoRA at 2e-5 is for 8B. Callers should give
    right answers, by the rules (not verified: whether the paper does).
    """
    tuned = copy.deepcopy(model).requires_grad_(True)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=lr, weight_decay=0.0)
    for _ in tqdm(range(steps), desc=f"certainty, beta {beta:g}", delay=2, leave=False):
        pick = torch.randint(len(start), (batch_size,), generator=generator, device=start.device)
        blanks, symbols = start[pick, task.P:] == task.MASK, answers[pick]
        half = torch.rand(blanks.shape, generator=generator, device=start.device) < 0.5
        masked = torch.cat([blanks & half, blanks & ~half])  # (2B, A)
        cells = symbols.repeat(2, 1).masked_fill(masked, task.MASK)
        tokens = torch.cat([start[pick, :task.P].repeat(2, 1), cells], dim=1)  # (2B, S)
        logits = predict(tuned, task, ranks, tokens)
        step_of(optimizer, certainty_loss(logits, symbols.repeat(2, 1), masked, beta).mean())
    return tuned.requires_grad_(False)


def step_advantages(rewards):
    """(N, G, B) reward of the complete guess at each of N passes -> advantages, of that shape.

    A~_t = (r_t - r_{t-1}) + mean of r_u over u > t, with r_{-1} = 0 and no future at the end; then
    A = (A~ - mean over G) / (std over G + 1e-4).
    """
    N = len(rewards)
    gain = rewards.diff(dim=0, prepend=torch.zeros_like(rewards[:1]))
    after = rewards.flip(0).cumsum(0).flip(0) - rewards  # sum of r_u over u > t
    left = torch.arange(N - 1, -1, -1, device=rewards.device).clamp(min=1).view(N, 1, 1)
    raw = gain + after / left
    return centred(raw, dim=1) / (raw.std(1, keepdim=True) + 1e-4)


def mdpo_loss(log_prob, old, confidence, masked, advantage, clip=0.2):
    """-min(rho A, clip(rho, 1 -+ clip) A) * confidence, mean over the masked cells -> (B,).

    log_prob, old (B, A): of the guessed symbols; advantage (B,); no KL term.
    """
    change = (log_prob - old).masked_fill(~masked, 0.0)
    loss = policy_loss(change, 0.0, advantage.unsqueeze(1), clip)  # (B, A)
    return mean_over(loss * confidence, masked)


@torch.no_grad()
def guesses(model, task, ranks, start, answers, keys, passes, temperature):
    """Decode in `passes` passes and record each of them -> tokens, masked, guess, log_prob,
    confidence, each (N, B, ...), and rewards (N, B): the fraction of the blanks guessed right.

    Every pass guesses all cells and commits the most confident ones, ceil(blanks / passes) of them.
    The paper's reward is whether the complete guess is right, which most boards are not.
    """
    board, steps = Board(model, task, ranks, start, keys, temperature), []
    blanks = board.unknown
    k = -(-blanks.sum(dim=1) // passes)  # (B,)
    for _ in range(passes):
        masked, tokens = board.unknown, board.tokens.clone()
        if not masked.any():
            break
        logits = board.forward()
        guess = board.sample(logits).where(masked, board.symbols)
        probs = logits.softmax(dim=-1)
        p_guess = probs.gather(2, guess.clamp(max=task.K - 1).unsqueeze(2)).squeeze(2)
        reward = mean_over((guess == answers).float(), blanks)
        confidence = probs.amax(dim=-1)
        steps.append((tokens, masked, guess, p_guess.log(), confidence, reward))
        board.commit(top_cells(confidence, masked, k), guess, confidence)
    return [torch.stack(part) for part in zip(*steps, strict=True)]


def tune_mdpo(model, task, ranks, start, answers, generator, updates=15, prompts=8, G=4, passes=12,
              trained=3, temperature=0.4, lr=1e-5, log=None):
    """-> a tuned copy. start (B, S): training puzzles, answers (B, A) for the rewards.

    G 4, T 0.4, clip 0.2 and lr 1e-5: the paper's files. The `trained` passes of each copy with the
    largest |A| are trained on, once. log: a list that receives the mean reward of the last pass at
    each update. lr = 0 changes nothing.
    """
    tuned = copy.deepcopy(model).requires_grad_(True)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=lr, weight_decay=0.0)
    for update in tqdm(range(updates), desc="mdpo", delay=2, leave=False):
        pick = torch.randint(len(start), (prompts,), generator=generator, device=start.device)
        pick = pick.repeat(G)  # copies of a prompt stand `prompts` apart
        keys = sample_keys(update, start[pick], copies_differ=True)
        *seen, rewards = guesses(tuned, task, ranks, start[pick], answers[pick], keys, passes,
                                 temperature)
        A = step_advantages(rewards.view(len(rewards), G, prompts)).flatten(1)  # (N, G * prompts)
        chosen = top_cells(A.abs().T, seen[1].any(dim=2).T & (A.T != 0), trained).T
        if log is not None:
            log.append(rewards[-1].mean().item())
        if not chosen.any():  # constant rewards teach nothing
            continue
        tokens, masked, guess, old, confidence = (part[chosen] for part in seen)
        log_probs = predict(tuned, task, ranks, tokens).log_softmax(dim=-1)
        symbols = guess.clamp(max=task.K - 1).unsqueeze(2)
        log_prob = log_probs.gather(2, symbols).squeeze(2)
        step_of(optimizer, mdpo_loss(log_prob, old, confidence, masked, A[chosen]).mean())
    return tuned.requires_grad_(False)
