"""Planted mistakes: each is a small change of the right solution, and the grader must catch it.

    python course/planted.py                # all of them; exit code 1 if one gets through
    python course/planted.py --part 2/4     # the second, sixth, tenth, ... of them

A mistake replaces `old` by `new` in a file of a copy of the project. One process imports torch,
then forks for each mistake; questions and answers are those of grade.py.
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
from course.make_starter import write_starter
from plumbing.cli import BadInput, Parser, end, number, run

SECONDS = 60  # for one mistake


class Mistake(NamedTuple):
    exercise: int
    what: str
    file: str
    old: str
    new: str


def planted(exercise, file, *mistakes):
    """mistakes: (what, old, new) each, in one file."""
    return [Mistake(exercise, what, file, old, new) for what, old, new in mistakes]


PLANTED = (
    *planted(1, "model.py",  # visible
        ("a leak: equal ranks above 0 see each other", "((k == q) & (q <= 0))", "(k == q)"),
        ("nobody sees itself", "(k < q) | itself |", "(k < q) |"),
        ("off by one: equal ranks 0 do not see each other", "((k == q) & (q <= 0))",
         "((k == q) & (q < 0))"),
        ("query and key are exchanged", "k, q = rank.unsqueeze(-2), rank.unsqueeze(-1)",
         "q, k = rank.unsqueeze(-2), rank.unsqueeze(-1)"),
        ("a leak: all known see each other, whatever their ranks", "((k == q) & (q <= 0))",
         "((k <= 0) & (q <= 0))"),
        ("a leak: one rank ahead is seen", "(k < q) | itself", "(k < q + 1) | itself"),
        ("what is beyond the window is seen by all", "(k < q) | itself",
         "(k < q) | rank.isinf().unsqueeze(-2) | itself")),
    *planted(2, "diffusion.py",  # draw_num_masked, draw_levels, masked_loss
        ("the number is off by one: no cell may be masked", "return 1 + torch.minimum(",
         "return torch.minimum("),
        ("m may be more than the cells that may be masked",
         "torch.minimum((ratio * maskable).long(), maskable - 1)", "(ratio * maskable).long() + 1"),
        ("always one cell: the batch has no strata", "(torch.arange(len(u), device=u.device) + u)",
         "u"),
        ("m is drawn for each sample alone, without strata",
         "return (torch.arange(len(u), device=u.device) + u) / len(u)", "return u"),
        ("the two rates are exchanged", "a, b, uniform = rates", "b, a, uniform = rates"),
        ("no sample stays uniform", "math.ceil(uniform * len(maskable))", "0"),
        ("the uniform samples are the first strata of the batch", "torch.cat([strata(first),",
         "torch.cat([strata(u)[:num_uniform],"),
        ("all samples have as many maskable cells as the first",
         "(ratio * maskable).long(), maskable - 1)",
         "(ratio * maskable[0]).long(), maskable[0] - 1)"),
        ("given cells are masked", "(place - A * given.long())", "place"),
        ("given cells count as cells that may be masked", "draw_num_masked(A - given.sum(dim=1),",
         "draw_num_masked(A - 0 * given.sum(dim=1),"),
        ("the rates are not handed on", "given.sum(dim=1), generator, rates)",
         "given.sum(dim=1), generator)"),
        ("all samples have one order",
         "torch.rand(B, A, generator=generator, device=given.device).argsort(dim=1)",
         "torch.rand(A, generator=generator, device=given.device).argsort().expand(B, A)"),
        ("a known cell is masked", "masked_fill(level > 0, task.MASK)",
         "masked_fill(level >= 0, task.MASK)"),
        ("a leak: the model reads the first masked symbol", "masked_fill(level > 0, task.MASK)",
         "masked_fill(level > 1, task.MASK)"),
        ("the bound is weighted wrongly: mean over all A cells", "/ scored.sum(dim=-1)",
         "/ level.shape[1]"),
        ("the bound is a sum", "/ scored.sum(dim=-1)", "/ 1"),
        ("the bound has the weight 1 / m twice", "/ scored.sum(dim=-1)",
         "/ scored.sum(dim=-1) ** 2"),
        ("known cells are scored", "scored = (level > 0) & (level <= W)", "scored = level <= W"),
        ("the window is off by one", "(level <= W)", "(level < W + (W < 2))"),
        ("predictions stand one place off", "logits[..., P:, :]", "logits[..., P - 1:-1, :]"),
        ("the readings are not asked for", "model(noisy, positions, rank, read_every=read_every)",
         "model(noisy, positions, rank)"),
        ("the prompt is not ranked", "rank = rank_with_prompt(ranks, level, W, P)",
         "rank = ranks(level, W)")),
    *planted(3, "diffusion.py",  # rankings
        ("sidm trains as scdm: latents everywhere", "level.clamp(0, 1)", "level.clamp(min=0)"),
        ("sidm: known cells have ranks of their own", "level.clamp(0, 1)", "level.clamp(max=1)"),
        ("sidm trains as mdm", "level.clamp(0, 1)", "level * 0"),
        ("scdm: the order is reversed", "return level.clamp(min=0)",
         "return torch.where(level > 0, level.shape[1] + 1 - level, 0)"),
        ("scdm: known cells see the earlier known only", "return level.clamp(min=0)",
         "return level"),
        ("scdm: the first unknown cell is seen by all", "return level.clamp(min=0)",
         "return (level - 1).clamp(min=0)"),
        ("mdm: unknown cells do not see each other", 'everywhere, but faster)."""\n    return None',
         'everywhere, but faster)."""\n    return level.clamp(0, 1)')),
    *planted(4, "sample.py",  # decode_pass
        ("the dial does nothing: all latents are present", "n = min(sampling.latents, u - c)",
         "n = u - c"),
        ("absent cells are present, and nobody sees them",
         "rank = rank_with_prompt(rule.ranks, level.unsqueeze(0), None, P)  # (1, T), or None",
         "rank = rank_with_prompt(rule.ranks, level.unsqueeze(0), None, P)\n"
         "    absent = cells[:, c + n:u]\n    present = torch.cat([absent, present], dim=1)\n"
         "    if rank is not None:\n"
         "        rank = torch.nn.functional.pad(rank.float(), (absent.shape[1], 0),\n"
         "                                       value=torch.inf)"),
        ("one latent too many", "min(sampling.latents, u - c)", "min(sampling.latents + 1, u - c)"),
        ("candidates may be more than there are cells", "c = min(max(sampling.candidates, k), u)",
         "c = max(sampling.candidates, k)"),
        ("candidates count as latents", "min(sampling.latents, u - c)",
         "max(0, min(sampling.latents - c, u - c))"),
        ("candidates see each other", ".clamp(max=n + 1)", ""),
        ("the levels are one place off", "torch.arange(u - A + 1, n + c + 1,",
         "torch.arange(u - A + 2, n + c + 2,"),
        ("a random order is left to right",
         "place = cell if rule.left_to_right else uniform(keys, 2 * u, A)", "place = cell"),
        ("a window that is not right behind",
         "place = cell if rule.left_to_right else uniform(keys, 2 * u, A)",
         "place = uniform(keys, 2 * u, A)"),
        ("the order is drawn once, not in every pass", "uniform(keys, 2 * u, A)",
         "uniform(keys, 0, A)"),
        ("all samples have the order of the first", "uniform(keys, 2 * u, A)",
         "uniform(keys[:1], 2 * u, A).expand(len(keys), A)"),
        ("a sample's noise depends on its neighbours", "uniform(keys, 2 * u + 1, c, task.K)",
         "uniform(keys + keys.sum(), 2 * u + 1, c, task.K)"),
        ("symbols have the same noise in every pass", "uniform(keys, 2 * u + 1, c, task.K)",
         "uniform(keys, 1, c, task.K)"),
        ("left to right is off by one", "(~known).cumsum(dim=1) <= c",
         "(~known).cumsum(dim=1) <= c - 1"),
        ("known cells are taken first", "place.masked_fill(known, torch.inf)",
         "place.masked_fill(known, -torch.inf)"),
        ("the prompt is not ranked", "rank_with_prompt(rule.ranks, level.unsqueeze(0), None, P)",
         "rank_with_prompt(rule.ranks, level.unsqueeze(0), None, 0)"),
        ("the least certain candidates are committed", ".topk(k, dim=1).indices",
         ".topk(k, dim=1, largest=False).indices"),
        ("the certainty is always the largest probability", "certainty(probs, sampling.order).topk",
         "probs.amax(dim=-1).topk"),
        ("the temperature is ignored", "sample_symbols(logits, sampling.temperature, noise)",
         "sample_symbols(logits, 1.0 if sampling.temperature else 0, noise)"),
        ("the confidence is that of all candidates",
         "probs.amax(dim=-1).gather(1, best).sum(dim=1)", "probs.amax(dim=-1).sum(dim=1)")),
    *planted(5, "mtp.py",  # next token, window
        ("the window is off by one", "masked_fill(level > W, math.inf)",
         "masked_fill(level >= W, math.inf)"),
        ("the last cell beyond the window is in it", "W >= level.shape[1]:",
         "W >= level.shape[1] - 1:"),
        ("beyond the window they see each other", "masked_fill(level > W, math.inf)",
         "masked_fill(level > W, 0.0)"),
        ("a random window is uniform", "torch.exp(u * math.log(A + 1)).long()",
         "(1 + u * A).long()"),
        ("a window of more than A", "min(int(window), A)", "int(window)"),
        ("an answer is read: each token is predicted at its own place",
         "logits = model(tokens[:, :-1]", "logits = model(tokens[:, 1:]"),
        ("the loss is a sum", ".mean(dim=-1)", ".sum(dim=-1)"),
        ("the readings are not asked for", "rank, read_every=read_every)", "rank)"),
        ("ranks are one place off", "else rank[:-1]", "else rank[1:]")),
    *planted(5, "sample.py",
        ("the cache is off by one: wrong positions",
         "positions = torch.arange(cached, T, device=start.device)",
         "positions = torch.arange(cached, T, device=start.device) - int(cached > 0)"),
        ("the cache is off by one: the model reads a token twice", "cached = T if use_cache else 0",
         "cached = T - 1 if use_cache else 0"),
        ("without a cache the model reads the last token only", "cached = T if use_cache else 0",
         "cached = T"),
        ("the cache is made and not used", "rank_now, cache=cache)", "rank_now, cache=None)"),
        ("the temperature is ignored",
         "sample_symbols(logits, temperature, uniform(keys, step, task.K))",
         "sample_symbols(logits, 1.0 if temperature else 0, uniform(keys, step, task.K))")),
    *planted(6, "course/ex6.py",  # star graph
        ("every answer counts as right", "fork = (answers[:, 1] == right)",
         "fork = (answers[:, 1] == answers[:, 1])"),
        ("the fork is the start node", "answers[:, 1] == right", "answers[:, 0] == right"),
        ("the step at the fork counts as one after it",
         "torch.stack([answers[:, 1:-1], answers[:, 2:]], dim=2)",
         "torch.stack([answers[:, :-1], answers[:, 1:]], dim=2)"),
        ("edges are walked backwards", "torch.stack([answers[:, 1:-1], answers[:, 2:]], dim=2)",
         "torch.stack([answers[:, 2:], answers[:, 1:-1]], dim=2)"),
        ("one step too many", "for _ in range(A - 1):", "for _ in range(A):"),
        ("every edge is as likely, wherever it leaves", "p / len(ahead)", "p / len(edges)"),
        ("several ways to a node: the last one counts",
         "there[b] = there.get(b, 0.0) + p / len(ahead)", "there[b] = p / len(ahead)")),
    *planted(7, "metrics.py",  # wilson
        ("the plain interval",
         "p, zz = k / n, z * z / n\n    half = z * (p * (1 - p) / n + zz / (4 * n)) ** 0.5",
         "p, zz = k / n, 0.0\n    half = z * (p * (1 - p) / n) ** 0.5"),
        ("90 %", "z=1.96", "z=1.645"),
        ("z is not squared", "z * z / n", "z / n"),
        ("4 n is 2 n", "zz / (4 * n)", "zz / (2 * n)"),
        ("the centre is p", "(p + zz / 2 - half)", "(p - half)"),
        ("no trial, rate 0", "return 0.0, 1.0", "return 0.0, 0.0"),
        ("z cannot be chosen", "p, zz = k / n, z * z / n",
         "z = 1.96\n    p, zz = k / n, z * z / n")),
    *planted(8, "course/ex8.py",  # exact sampler
        ("candidates that see each other: the second cell knows the first",
         "        for same in agree:\n            fits = fits & same",
         "            fits = fits & same"),
        ("the order is ignored", "for cell in order[i:i + k]]",
         "for cell in range(i, min(i + k, len(order)))]"),
        ("one cell of the step becomes known",
         "        for same in agree:\n            fits = fits & same",
         "        fits = fits & agree[0]"),
        ("boards that break the rules are forgotten", ".sum() + 1 - q.sum()).item() / 2",
         ".sum()).item() / 2"),
        ("twice the distance", ".item() / 2", ".item()"),
        ("bits", "p.log()", "p.log2()"),
        ("the least uncertain cell is taken off", "sum(each) - max(each)", "sum(each) - min(each)"),
        ("the joint entropy is left out", "for cell in cells) - entropies(boards, list(cells))",
         "for cell in cells)")),
    *planted(9, "course/ex9.py",  # an objective
        ("a name that is taken", 'return "prefix", ', 'return "ar", '),
        ("ar by another name", "Objective(diffusion.semi_causal,", "Objective(mtp.causal,"),
        ("the token that is predicted is seen", "Objective(diffusion.semi_causal,",
         "Objective(lambda level, W=None: level * 0,"),
        ("scdm by another name", 'return "prefix", Objective(',
         'return "prefix", Objective(diffusion.semi_causal)\n    Objective('),
        ("the loss of masks for a model of the next token", "mtp.mask_nothing, mtp.next_token_loss",
         "mtp.mask_nothing, diffusion.masked_loss"),
        ("nothing is masked, and the loss expects masks", 'return "prefix", Objective(',
         "def loss(model, x, level, W, task, ranks, read_every=0):\n"
         "        return diffusion.masked_loss(model, x, level * 0, W, task, ranks)\n"
         '    return "prefix", Objective(diffusion.semi_causal, mtp.mask_nothing, loss)\n'
         "    Objective(")),
)


# --------------------------------------------------------------------------------------------------
# Catching them


def changed(mistake):
    """-> the text of the file with the mistake. Raises BadInput if the right text is not there."""
    text = (ROOT / mistake.file).read_text(encoding="utf-8")
    if text.count(mistake.old) != 1:
        raise BadInput(f"planted mistake '{mistake.what}': {mistake.file} holds its old text "
                       f"{text.count(mistake.old)} times, not once; change course/planted.py")
    return text.replace(mistake.old, mistake.new)


def forget_the_project():
    """Forget what is imported, so that a fork imports the files of another tree."""
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
    """-> each mistake with why its exercise fails; "" if the grader did not catch it."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        write_starter(tree, [])
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
