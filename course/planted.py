"""Planted mistakes: each is a small change of the right solution, and the grader must catch it.

    python course/planted.py                # all of them; exit code 1 if one gets through
    python course/planted.py --part 2/4     # the second, sixth, tenth, ... of them

A mistake is (file, old, new) on a copy of the project. One process imports torch, then forks for
each mistake; questions and answers are those of grade.py.
"""
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import plumbing  # noqa: F401  (before torch: see there)
import torch

from course import asking
from course.exercises import EXERCISES, ROOT
from course.grade import cases_of, verdict
from course.make_starter import handed_out
from plumbing.cli import BadInput, Parser, end, number, run

SECONDS = 60  # for one mistake


class Mistake(NamedTuple):
    exercise: int
    what: str
    file: str
    old: str
    new: str


PLANTED = (
    # 1 visible
    Mistake(1, "a leak: equal ranks above 0 see each other", "model.py",
            "((k == q) & (q <= 0))", "(k == q)"),
    Mistake(1, "nobody sees itself", "model.py", "(k < q) | itself |", "(k < q) |"),
    Mistake(1, "off by one: rank 0 is no equal any more", "model.py",
            "((k == q) & (q <= 0))", "((k == q) & (q < 0))"),
    Mistake(1, "query and key are exchanged", "model.py",
            "k, q = rank.unsqueeze(-2), rank.unsqueeze(-1)",
            "q, k = rank.unsqueeze(-2), rank.unsqueeze(-1)"),
    Mistake(1, "a leak: all known see each other, whatever their ranks", "model.py",
            "((k == q) & (q <= 0))", "((k <= 0) & (q <= 0))"),
    Mistake(1, "a leak: one rank ahead is seen", "model.py", "(k < q) | itself",
            "(k < q + 1) | itself"),
    Mistake(1, "what is beyond the window is seen by all", "model.py", "(k < q) | itself",
            "(k < q) | rank.isinf().unsqueeze(-2) | itself"),
    # 2 draw_turns, hidden_nats
    Mistake(2, "the mask rate is off by one: nothing may be hidden", "diffusion.py",
            "m = 1 + torch.minimum(", "m = torch.minimum("),
    Mistake(2, "always one cell: the batch has no strata", "diffusion.py",
            "(torch.arange(len(u), device=device) + u)", "u"),
    Mistake(2, "m is drawn for each sample alone, without strata", "diffusion.py",
            "return (torch.arange(len(u), device=device) + u) / len(u)", "return u"),
    Mistake(2, "the two rates are exchanged", "diffusion.py", "a, b, uniform = rates",
            "b, a, uniform = rates"),
    Mistake(2, "no sample stays uniform", "diffusion.py", "math.ceil(uniform * batch_size)", "0"),
    Mistake(2, "the uniform samples are the first strata of the batch", "diffusion.py",
            "torch.cat([strata(first),", "torch.cat([strata(u)[:few],"),
    Mistake(2, "the uniform samples count given cells", "diffusion.py",
            "(share * free).long()",
            "(share * torch.where(torch.arange(batch_size) < few, A, free)).long()"),
    Mistake(2, "given cells are hidden", "diffusion.py", "(place - A * given.long())", "place"),
    Mistake(2, "given cells count as cells that may be hidden", "diffusion.py",
            "free = A - given.sum(dim=1)", "free = A - 0 * given.sum(dim=1)"),
    Mistake(2, "a known cell is masked", "diffusion.py", "masked_fill(turn > 0, task.MASK)",
            "masked_fill(turn >= 0, task.MASK)"),
    Mistake(2, "a leak through the mask: the first hidden symbol is fed", "diffusion.py",
            "masked_fill(turn > 0, task.MASK)", "masked_fill(turn > 1, task.MASK)"),
    Mistake(2, "the bound is weighted wrongly: mean over all A cells", "diffusion.py",
            "/ scored.sum(dim=1)", "/ turn.shape[1]"),
    Mistake(2, "the bound is a sum", "diffusion.py", "/ scored.sum(dim=1)", "/ 1"),
    Mistake(2, "the bound has the weight 1 / m twice", "diffusion.py", "/ scored.sum(dim=1)",
            "/ scored.sum(dim=1) ** 2"),
    Mistake(2, "known cells are scored", "diffusion.py", "scored = (turn > 0) & (turn <= W)",
            "scored = turn <= W"),
    Mistake(2, "the window is off by one", "diffusion.py", "(turn <= W)", "(turn < W + (W < 2))"),
    Mistake(2, "predictions stand one place off", "diffusion.py", "logits = logits[:, P:]",
            "logits = logits[:, P - 1:-1]"),
    Mistake(2, "the prompt has rank 1", "diffusion.py", "rank = F.pad(rank, (P, 0))",
            "rank = F.pad(rank, (P, 0), value=1)"),
    # 3 rankings
    Mistake(3, "sidm trains as scdm: latents everywhere", "diffusion.py", "turn.clamp(0, 1)",
            "turn.clamp(min=0)"),
    Mistake(3, "sidm: known cells have ranks of their own", "diffusion.py", "turn.clamp(0, 1)",
            "turn.clamp(max=1)"),
    Mistake(3, "sidm trains as mdm", "diffusion.py", "turn.clamp(0, 1)", "turn * 0"),
    Mistake(3, "scdm: the order is reversed", "diffusion.py", "return turn.clamp(min=0)",
            "return torch.where(turn > 0, turn.shape[1] + 1 - turn, 0)"),
    Mistake(3, "scdm: known cells see the earlier known only", "diffusion.py",
            "return turn.clamp(min=0)", "return turn"),
    Mistake(3, "scdm: the first unknown cell is seen by all", "diffusion.py",
            "return turn.clamp(min=0)", "return (turn - 1).clamp(min=0)"),
    Mistake(3, "mdm: unknown cells do not see each other", "diffusion.py",
            "(all 0, but faster).\"\"\"\n    return None",
            "(all 0, but faster).\"\"\"\n    return turn.clamp(0, 1)"),
    # 4 decode
    Mistake(4, "the dial does nothing: all latents are there", "sample.py",
            "return c, min(dials.latents, u - c)", "return c, u - c"),
    Mistake(4, "latents are masked but present", "sample.py",
            "return torch.cat([prompt, P + cells], dim=1), rank, turn",
            "rest = torch.arange(P, task.S, device=device).expand(rows, A)\n"
            "    rest = rest[:, :A - cells.shape[1]]\n"
            "    if rank is not None:\n"
            "        rank = torch.nn.functional.pad(rank.float(), (rest.shape[1], 0),\n"
            "                                       value=torch.inf)\n"
            "    return torch.cat([rest, prompt, P + cells], dim=1), rank, turn"),
    Mistake(4, "one latent too many", "sample.py", "min(dials.latents, u - c)",
            "min(dials.latents + 1, u - c)"),
    Mistake(4, "candidates may be more than there are cells", "sample.py",
            "c = min(max(dials.tokens_per_step, dials.candidates), u)",
            "c = max(dials.tokens_per_step, dials.candidates)"),
    Mistake(4, "candidates count as latents", "sample.py", "min(dials.latents, u - c)",
            "max(0, min(dials.latents - c, u - c))"),
    Mistake(4, "candidates see each other", "sample.py", "c + n - torch.maximum(r, c - 1)",
            "c + n - r"),
    Mistake(4, "empty seats can be seen", "sample.py", "rank.masked_fill(empty, torch.inf)",
            "rank.masked_fill(empty, 0)"),
    Mistake(4, "a random order is left to right", "sample.py",
            "line = place if rule.left_to_right else noise", "line = place"),
    Mistake(4, "a window that is not right behind", "sample.py",
            "line = place if rule.left_to_right else noise", "line = noise"),
    Mistake(4, "left to right is off by one", "sample.py", "(~known).cumsum(dim=1) <= c",
            "(~known).cumsum(dim=1) <= c - 1"),
    Mistake(4, "known cells are taken first", "sample.py", "line.masked_fill(known, torch.inf)",
            "line.masked_fill(known, -torch.inf)"),
    Mistake(4, "the prompt has rank 1", "sample.py",
            "rank = torch.nn.functional.pad(rank, (P, 0))",
            "rank = torch.nn.functional.pad(rank, (P, 0), value=1)"),
    # 5 next token, window
    Mistake(5, "the window is off by one", "mtp.py", "masked_fill(turn > W, math.inf)",
            "masked_fill(turn >= W, math.inf)"),
    Mistake(5, "the last cell beyond the window is in it", "mtp.py", "W >= turn.shape[1]:",
            "W >= turn.shape[1] - 1:"),
    Mistake(5, "beyond the window they see each other", "mtp.py",
            "masked_fill(turn > W, math.inf)", "masked_fill(turn > W, 0.0)"),
    Mistake(5, "a random window is uniform", "mtp.py",
            "torch.exp(u * math.log(A + 1)).long()", "(1 + u * A).long()"),
    Mistake(5, "a window of more than A", "mtp.py", "min(int(window), A)", "int(window)"),
    Mistake(5, "an answer is read: tokens stand at their own place", "mtp.py",
            "logits = model(tokens[:, :-1]", "logits = model(tokens[:, 1:]"),
    Mistake(5, "the loss is a sum", "mtp.py", "return nll.mean(dim=1)", "return nll.sum(dim=1)"),
    Mistake(5, "ranks are one place off", "mtp.py", "else rank[:-1]", "else rank[1:]"),
    Mistake(5, "the cache is off by one: wrong positions", "sample.py",
            "positions = torch.arange(fed, T, device=start.device)",
            "positions = torch.arange(fed, T, device=start.device) - int(fed > 0)"),
    Mistake(5, "the cache is off by one: a token is fed twice", "sample.py",
            "fed = T if use_cache else 0", "fed = T - 1 if use_cache else 0"),
    Mistake(5, "without a cache only the last token is fed", "sample.py",
            "fed = T if use_cache else 0", "fed = T"),
    Mistake(5, "the cache is made and not used", "sample.py", "rank_now, cache=cache)",
            "rank_now, cache=None)"),
    Mistake(5, "the temperature is ignored", "sample.py",
            "draw(logits, temperature, uniform(keys, step, task.K))",
            "draw(logits, 1.0 if temperature else 0, uniform(keys, step, task.K))"),
    # 6 star graph
    Mistake(6, "an answer is read: what was answered is right", "course/ex6.py",
            "fork = (answers[:, 1] == right)", "fork = (answers[:, 1] == answers[:, 1])"),
    Mistake(6, "the fork is the start node", "course/ex6.py", "answers[:, 1] == right",
            "answers[:, 0] == right"),
    Mistake(6, "the step at the fork counts as one after it", "course/ex6.py",
            "torch.stack([answers[:, 1:-1], answers[:, 2:]], dim=2)",
            "torch.stack([answers[:, :-1], answers[:, 1:]], dim=2)"),
    Mistake(6, "edges are walked backwards", "course/ex6.py",
            "torch.stack([answers[:, 1:-1], answers[:, 2:]], dim=2)",
            "torch.stack([answers[:, 2:], answers[:, 1:-1]], dim=2)"),
    Mistake(6, "one step too many", "course/ex6.py", "for _ in range(A - 1):",
            "for _ in range(A):"),
    Mistake(6, "every edge is as likely, wherever it leaves", "course/ex6.py", "p / len(ahead)",
            "p / len(edges)"),
    Mistake(6, "several ways to a node: the last one counts", "course/ex6.py",
            "there[b] = there.get(b, 0.0) + p / len(ahead)", "there[b] = p / len(ahead)"),
    # 7 wilson
    Mistake(7, "the plain interval", "metrics.py",
            "p, zz = k / n, z * z / n\n    half = z * (p * (1 - p) / n + zz / (4 * n)) ** 0.5",
            "p, zz = k / n, 0.0\n    half = z * (p * (1 - p) / n) ** 0.5"),
    Mistake(7, "90 %", "metrics.py", "z=1.96", "z=1.645"),
    Mistake(7, "z is not squared", "metrics.py", "z * z / n", "z / n"),
    Mistake(7, "4 n is 2 n", "metrics.py", "zz / (4 * n)", "zz / (2 * n)"),
    Mistake(7, "the centre is p", "metrics.py", "(p + zz / 2 - half)", "(p - half)"),
    Mistake(7, "no trial, rate 0", "metrics.py", "return 0.0, 1.0", "return 0.0, 0.0"),
    Mistake(7, "z cannot be chosen", "metrics.py", "p, zz = k / n, z * z / n",
            "z = 1.96\n    p, zz = k / n, z * z / n"),
    # 8 exact sampler
    Mistake(8, "candidates that see each other: the second cell knows the first", "course/ex8.py",
            "        for same in agree:\n            fits = fits & same",
            "            fits = fits & same"),
    Mistake(8, "the order is ignored", "course/ex8.py", "for cell in order[i:i + k]]",
            "for cell in range(i, min(i + k, len(order)))]"),
    Mistake(8, "one cell of the step becomes known", "course/ex8.py",
            "        for same in agree:\n            fits = fits & same",
            "        fits = fits & agree[0]"),
    Mistake(8, "boards that break the rules are forgotten", "course/ex8.py",
            ".sum() + 1 - q.sum()).item() / 2", ".sum()).item() / 2"),
    Mistake(8, "twice the distance", "course/ex8.py", ".item() / 2", ".item()"),
    Mistake(8, "bits", "course/ex8.py", "p.log()", "p.log2()"),
    Mistake(8, "the least uncertain cell is taken off", "course/ex8.py", "sum(each) - max(each)",
            "sum(each) - min(each)"),
    Mistake(8, "the joint entropy is left out", "course/ex8.py",
            "for cell in cells) - entropies(boards, list(cells))", "for cell in cells)"),
    # 9 a row
    Mistake(9, "a name that is taken", "course/ex9.py", 'return "prefix", ', 'return "ar", '),
    Mistake(9, "ar by another name", "course/ex9.py", "Objective(diffusion.semi_causal,",
            "Objective(mtp.causal,"),
    Mistake(9, "the token that is predicted is seen", "course/ex9.py",
            "Objective(diffusion.semi_causal,", "Objective(lambda turn, W=None: turn * 0,"),
    Mistake(9, "scdm by another name", "course/ex9.py", "Objective(diffusion.semi_causal, "
            "mtp.hide_nothing, mtp.next_token_nats,\n                               "
            "left_to_right=True, next_token=True, dials=(\"temperature\",))",
            "Objective(diffusion.semi_causal)"),
    Mistake(9, "the loss of masks for a model of the next token", "course/ex9.py",
            "mtp.hide_nothing, mtp.next_token_nats", "mtp.hide_nothing, diffusion.hidden_nats"),
    Mistake(9, "nothing is hidden, and masks are expected", "course/ex9.py",
            "mtp.next_token_nats,\n                               "
            "left_to_right=True, next_token=True, dials=(\"temperature\",))",
            "lambda model, x, turn, W, task, ranks: diffusion.hidden_nats(\n"
            "        model, x, turn * 0, W, task, ranks))"),
)


# --------------------------------------------------------------------------------------------------
# Catching them


def copy_of_the_project(folder):
    for name in handed_out():
        if name.endswith(".py"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


def changed(mistake):
    """-> the text of the file with the mistake. Raises BadInput if the right text is not there."""
    text = (ROOT / mistake.file).read_text(encoding="utf-8")
    if text.count(mistake.old) != 1:
        raise BadInput(f"planted mistake '{mistake.what}': {mistake.file} holds its old text "
                       f"{text.count(mistake.old)} times, not once; change course/planted.py")
    return text.replace(mistake.old, mistake.new)


def forget_the_project():
    """So that a fork imports the files of another tree."""
    def own(file):
        file = Path(file).resolve()
        return file.is_relative_to(ROOT) and not file.is_relative_to(Path(sys.prefix).resolve())

    packages = re.compile(r"(course|data|plumbing)(\.|$)")  # some have no file of their own
    for name, module in list(sys.modules.items()):
        if packages.match(name) or own(getattr(module, "__file__", None) or sys.prefix):
            del sys.modules[name]
    sys.path[:] = [p for p in sys.path if not own(p or ".")]
    sys.dont_write_bytecode = True


def answers_of(tree, exercise, cases):
    """As grade.asked(), in a fork of this process, which has imported torch already."""
    file = tree / "answers.json"
    file.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        forget_the_project()
        try:
            asking.answer(str(tree), exercise.number, cases, str(file))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None


def caught(mistakes, seed):
    """-> for each mistake: why its exercise fails, or "" if it got through; None: no mistake."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_of_the_project(tree)
        for mistake in mistakes:
            exercise = EXERCISES[mistake.exercise - 1]
            cases = cases_of(exercise, seed)
            (tree / mistake.file).write_text(changed(mistake), encoding="utf-8")
            answers = answers_of(tree, exercise, cases)
            yield mistake, verdict(exercise, cases, answers)
            shutil.copyfile(ROOT / mistake.file, tree / mistake.file)


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("--part", default="1/1", help="I/N: every N-th, from the I-th (default: 1/1)")
    p.add_argument("--seed", type=number(0, 2**62), default=0, help="of the questions (default: 0)")
    args = p.parse_args(argv)
    if not re.fullmatch(r"[1-9]\d{0,3}/[1-9]\d{0,3}", args.part):
        raise BadInput(f"--part {args.part} is not I/N")
    part, parts = map(int, args.part.split("/"))
    torch.set_num_threads(1)
    through = 0
    for mistake, why in caught(PLANTED[part - 1::parts], args.seed):
        print(f"{mistake.exercise} {mistake.what}: {why or 'GOT THROUGH'}", flush=True)
        through += not why
    print(f"{through} of {len(PLANTED[part - 1::parts])} planted mistakes got through")
    return 1 if through else 0


if __name__ == "__main__":
    end(run(main))
