"""The grader's questions, asked in a process of its own that has the student's tree alone.

    python -I asking.py TREE NUMBER CASES ANSWERS FORBIDDEN CODE

CASES and ANSWERS are JSON files. This side calls the student's functions and writes down what they
return and what they do with the models they are given. It knows no right answer: hidden.py works
those out in the process of the grader, which reads these answers and nothing else. Opening a file
of the folder FORBIDDEN ends the process with exit code CODE.
"""
import json
import os
import sys
from dataclasses import replace
from types import SimpleNamespace

if __name__ == "__main__":
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
import torch  # noqa: E402


def plain(value):
    """A tensor, or a container of tensors -> lists, numbers, strings."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


class Table:
    """A 'model' that looks its logits up: (S, K) by position, or (S, V, K) by position and token.

    It remembers every call: tokens, positions, rank, and how many tokens its cache held. Asked for
    several readings it returns two, the first with the symbols in reverse.
    """

    def __init__(self, logits):
        self.logits, self.calls = torch.tensor(logits), []

    def __call__(self, tokens, positions, rank=None, cache=None, read_every=0):
        positions = positions.expand(tokens.shape)
        self.calls.append({"tokens": tokens.tolist(), "positions": positions.tolist(),
                           "rank": plain(rank), "cached": None if cache is None else cache["n"]})
        if cache is not None:
            cache["n"] += tokens.shape[1]
        by_token = self.logits.dim() == 3
        logits = self.logits[positions, tokens] if by_token else self.logits[positions]
        return torch.stack([logits.flip(-1), logits]) if read_every else logits

    def new_cache(self):
        return {"n": 0}


def toy(case):
    return SimpleNamespace(P=case["P"], A=case["A"], S=case["P"] + case["A"], K=case["K"],
                           V=case["K"] + 2, MASK=case["K"], BOS=case["K"] + 1, name="toy",
                           unique_answer=False)


def raw(level, W=None):
    """A ranking that hands the level through, so that it can be seen in the model's rank."""
    return level


def nothing(level, W=None):
    return None


# --------------------------------------------------------------------------------------------------
# One function for each exercise: a case -> what the student's code makes of it


def ask_1(case):
    from model import visible
    sees = visible(torch.tensor(case["rank"], dtype=getattr(torch, case["dtype"])))
    return {"dtype": str(sees.dtype), "sees": sees.tolist()}


def ask_2(case):
    import diffusion
    if case["kind"] != "loss":
        generator, rates = torch.Generator().manual_seed(case["seed"]), tuple(case["rates"])
        if case["kind"] == "number":
            m = diffusion.draw_num_masked(torch.tensor(case["maskable"]), generator, rates)
            return {"m": m.tolist(), "whole": not m.is_floating_point()}
        given = torch.tensor(case["given"] * case["copies"])
        level = diffusion.draw_levels(given, generator, left_to_right=case["left_to_right"],
                                      rates=rates)
        return {"level": level.tolist(), "whole": not level.is_floating_point()}
    model = Table(case["logits"])
    ranks = {"raw": raw, "none": nothing}[case["ranks"]]
    W = torch.tensor(case["W"]) if case["tensor"] else case["W"]
    loss = diffusion.masked_loss(model, torch.tensor(case["tokens"]), torch.tensor(case["level"]),
                                 W, toy(case), ranks, read_every=2 * case["readings"])
    return {"loss": loss.tolist(), "calls": model.calls}


def ask_3(case):
    import diffusion
    ranks = getattr(diffusion, case["name"])
    level = torch.tensor(case["level"])
    return [plain(ranks(level, case["W"])), plain(ranks(level))]


def ask_4(case):
    from noise import sample_keys
    from objectives import OBJECTIVES, Objective, SamplingParams
    from sample import decode
    ranks = {"raw": raw, "none": nothing}[case["ranks"]]
    OBJECTIVES["asked"] = Objective(ranks, left_to_right=case["left_to_right"])
    start, sampling = torch.tensor(case["start"]), SamplingParams(**case["sampling"])
    keys = sample_keys(case["seed"], start, copies_differ=True)

    def decoded(rows):
        model = Table(case["logits"])
        tokens, stats = decode(model, toy(case), "asked", start[rows], sampling, keys[rows])
        return model.calls, tokens.tolist(), stats

    calls, tokens, stats = decoded(slice(None))
    if case["kind"] == "law":
        return {"tokens": tokens, "calls": calls[:2]}
    alone = [decoded(slice(i, i + 1))[1][0] for i in range(len(start))]
    return {"tokens": tokens, "stats": plain(stats), "calls": calls, "alone": alone}


def ask_5(case):
    import mtp
    kind = case["kind"]
    if kind == "window":
        W = torch.tensor(case["W"]) if case["tensor"] else case["W"]
        return plain(mtp.window_sees_itself(torch.tensor(case["level"]), W))
    if kind == "draw":
        g = torch.Generator().manual_seed(case["seed"])
        return [int(mtp.draw_window(case["window"], case["A"], g, "cpu"))
                for _ in range(case["draws"])]
    model, task = Table(case["logits"]), toy(case)
    ranks = {"raw": raw, "causal": mtp.causal}[case["ranks"]]
    start = torch.tensor(case["start"])
    if kind == "loss":
        level = torch.arange(1, task.A + 1).expand(len(start), task.A)
        loss = mtp.next_token_loss(model, start, level, task.A, task, ranks,
                                   read_every=2 * case["readings"])
        return {"loss": loss.tolist(), "calls": model.calls}
    from noise import sample_keys
    from objectives import OBJECTIVES, Objective
    from sample import decode_next_token
    OBJECTIVES["asked"] = Objective(ranks, left_to_right=True, next_token=True)
    keys = sample_keys(case["seed"], start, copies_differ=True)
    tokens, stats = decode_next_token(model, task, "asked", start, case["temperature"], keys,
                                      use_cache=case["use_cache"])
    calls = [{**call, "tokens": call["tokens"][:8]} for call in model.calls]
    return {"tokens": tokens.tolist(), "stats": plain(stats), "calls": calls}


def ask_6(case):
    from course.ex6 import chance_level, fork_and_after
    prompt = torch.tensor(case["prompt"])
    if case["kind"] == "chance":
        return float(chance_level(prompt, case["A"]))
    return [float(x) for x in fork_and_after(prompt, torch.tensor(case["answers"]))]


def ask_7(case):
    from metrics import wilson
    return [float(x) for x in wilson(case["k"], case["n"], **case["z"])]


def ask_8(case):
    from course import ex8
    if case["kind"] == "tv":
        return float(ex8.total_variation(torch.tensor(case["q"], dtype=torch.double)))
    boards = torch.tensor(case["boards"])
    if case["kind"] == "law":
        return plain(ex8.law(boards, case["order"], case["k"]))
    return [float(ex8.dependence(boards, case["cells"])),
            float(ex8.entropy_bound(boards, case["cells"]))]


def ask_9(case):
    """Add the objective, train three steps, decode; then see what a forward pass is given."""
    import objectives
    import train
    from config import Config
    from course.ex9 import sixth
    from data import make_task
    from noise import sample_keys
    from sample import decode, decode_next_token
    before = list(objectives.OBJECTIVES)
    name, rule = sixth()
    objectives.OBJECTIVES[name] = rule
    config = Config(objective=name, task="star", path_len=4, labels=11, width=16, depth=1, heads=2,
                    batch_size=32, max_steps=3, device="cpu", seed=case["seed"])
    task, exact = make_task(config), torch.autocast("cpu", enabled=False)
    state = train.make_state(config, task, torch.device("cpu"), exact)
    step = train.make_step(state)
    weights = state.model.head.weight.detach().clone()
    losses = [step(1.0).item() for _ in range(3)]
    moved = (state.model.head.weight - weights).abs().max().item()
    start, sampling = task.test_set(5)[0], objectives.make_sampling_params(name, task)
    keys = sample_keys(case["seed"], start, copies_differ=True)
    if rule.next_token:
        tokens, _ = decode_next_token(state.model, task, name, start, sampling.temperature, keys)
    else:
        tokens, _ = decode(state.model, task, name, start, sampling, keys)
    seen = []
    for level, W in (*case["levels"], (None, None)):
        small = toy(case)
        if level is None:  # what the objective itself masks
            given = torch.zeros(1, small.A, dtype=torch.bool)
            g = torch.Generator().manual_seed(case["seed"])
            drawn, window = rule.mask(given, g, replace(config, window="2"))
        else:
            drawn, window = torch.tensor([level]), W
        model, x = Table(case["logits"]), torch.tensor([case["tokens"]])
        loss = rule.loss(model, x, drawn, window, small, rule.ranks)
        seen.append({**model.calls[0], "loss": loss.tolist(), "level": drawn.tolist()})
    return {"before": before, "name": str(name), "next_token": bool(rule.next_token),
            "losses": losses, "moved": moved, "start": start.tolist(), "tokens": tokens.tolist(),
            "P": task.P, "K": task.K, "seen": seen}


# --------------------------------------------------------------------------------------------------
# The process


def guard(tree, forbidden, code):
    """Opening a file of the reference ends this process: nobody can remove an audit hook."""
    allowed = tuple(os.path.realpath(p) + os.sep for p in
                    (tree, os.getcwd(), sys.prefix, sys.base_prefix))
    root = os.path.realpath(forbidden) + os.sep

    def hook(event, args):
        if event == "open" and isinstance(args[0], str | bytes):
            file = os.path.realpath(os.fsdecode(args[0]))
            if file.startswith(root) and not file.startswith(allowed):
                os._exit(code)

    if allowed[0] != root:
        sys.addaudithook(hook)


def ask(number, cases):
    """-> an answer for each case. After an error no more is asked, and the last answer names it."""
    answers = []
    for case in cases:
        try:
            answers.append({"is": globals()[f"ask_{number}"](case)})
        except Exception as e:  # whatever it is, it is the student's, and graded
            answers.append({"error": type(e).__name__})
            break
    return answers


def answer(tree, number, cases, answers):
    """Ask, and write the answers down; in a process that the student's code may spoil."""
    sys.path.insert(0, tree)
    with open(answers, "x", encoding="utf-8") as file:
        file.write(json.dumps(ask(number, cases)))


def main(tree, number, cases, answers, forbidden, code):
    with open(cases, encoding="utf-8") as file:
        cases = json.load(file)
    torch.set_num_threads(1)
    guard(tree, forbidden, int(code))
    answer(tree, int(number), cases, answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
