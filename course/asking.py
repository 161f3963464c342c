"""The grader's questions: run in a process of its own, with the student's tree and nothing else.

    python -I asking.py TREE NUMBER CASES ANSWERS FORBIDDEN

CASES and ANSWERS are JSON files. This side calls the student's functions and writes down what they
return and what they do with the models they are given. It knows no right answer: those are worked
out by hidden.py, in the process of the grader, which believes nothing but the answers.
"""
import json
import os
import sys
from types import SimpleNamespace

TOUCHED_THE_REFERENCE = 13  # exit code


def plain(value):
    """A tensor, or what holds tensors -> lists, numbers, strings."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


class Table:
    """A 'model' that looks its logits up: (S, K) by position, or (S, V, K) by position and token.

    It remembers every call: tokens, positions, rank, and how many tokens its cache had seen.
    """

    def __init__(self, logits):
        import torch
        self.logits, self.calls = torch.tensor(logits), []

    def __call__(self, tokens, positions, rank=None, cache=None):
        positions = positions.expand(tokens.shape)
        self.calls.append({"tokens": tokens.tolist(), "positions": positions.tolist(),
                           "rank": plain(rank), "cached": None if cache is None else cache["n"]})
        if cache is not None:
            cache["n"] += tokens.shape[1]
        if self.logits.dim() == 2:
            return self.logits[positions]
        return self.logits[positions, tokens]

    def new_cache(self):
        return {"n": 0}


def toy(case):
    return SimpleNamespace(P=case["P"], A=case["A"], S=case["P"] + case["A"], K=case["K"],
                           V=case["K"] + 2, MASK=case["K"], BOS=case["K"] + 1, name="toy",
                           unique_answer=False)


def raw(turn, W=None):
    """A ranking that hands the turn through, so that it can be seen in the model's rank."""
    return turn


def nothing(turn, W=None):
    return None


# --------------------------------------------------------------------------------------------------
# One function for each exercise: a case -> what the student's code makes of it


def ask_1(case):
    import torch

    from model import visible
    sees = visible(torch.tensor(case["rank"], dtype=getattr(torch, case["dtype"])))
    return {"dtype": str(sees.dtype), "sees": sees.tolist()}


def ask_2(case):
    import torch

    import diffusion
    given = None if case.get("given") is None else torch.tensor(case["given"])
    if case["kind"] == "turns":
        turn = diffusion.draw_turns(case["B"], case["A"],
                                    torch.Generator().manual_seed(case["seed"]), "cpu",
                                    left_to_right=case["left_to_right"], given=given,
                                    rates=case["rates"])
        return {"turn": turn.tolist(), "whole": not turn.is_floating_point()}
    model = Table(case["logits"])
    ranks = {"raw": raw, "none": nothing}[case["ranks"]]
    W = torch.tensor(case["W"]) if case["tensor"] else case["W"]
    nats = diffusion.hidden_nats(model, torch.tensor(case["tokens"]), torch.tensor(case["turn"]),
                                 W, toy(case), ranks)
    return {"nats": nats.tolist(), "calls": model.calls}


def ask_3(case):
    import torch

    import diffusion
    ranks = getattr(diffusion, case["name"])
    turn = torch.tensor(case["turn"])
    return [plain(ranks(turn, case["W"])), plain(ranks(turn))]


def ask_4(case):
    import torch

    from objectives import OBJECTIVES, Dials, Objective
    from plumbing.randomness import sample_keys
    from sample import decode, shares
    dials = Dials(**case["dials"])
    if case["kind"] == "shares":
        return [list(shares(u, dials)) for u in range(1, case["A"] + 1)]
    ranks = {"raw": raw, "none": nothing}[case["ranks"]]
    OBJECTIVES["asked"] = Objective(ranks, left_to_right=case["left_to_right"])
    model, start = Table(case["logits"]), torch.tensor(case["start"])
    keys = sample_keys(case["seed"], start, copies_differ=True)
    tokens, stats = decode(model, toy(case), "asked", start, dials, keys)
    calls = model.calls[:case["keep"]]
    return {"tokens": tokens.tolist(), "stats": plain(stats), "calls": calls,
            "passes": len(model.calls)}


def ask_5(case):
    import torch

    import mtp
    kind = case["kind"]
    if kind == "window":
        W = torch.tensor(case["W"]) if case["tensor"] else case["W"]
        return plain(mtp.window_sees_itself(torch.tensor(case["turn"]), W))
    if kind == "draw":
        g = torch.Generator().manual_seed(case["seed"])
        return [int(mtp.draw_window(case["window"], case["A"], g, "cpu"))
                for _ in range(case["draws"])]
    model, task = Table(case["logits"]), toy(case)
    ranks = {"raw": raw, "causal": mtp.causal}[case["ranks"]]
    start = torch.tensor(case["start"])
    if kind == "nats":
        turn = torch.arange(1, task.A + 1).expand(len(start), task.A)
        nats = mtp.next_token_nats(model, start, turn, task.A, task, ranks)
        return {"nats": nats.tolist(), "calls": model.calls}
    from objectives import OBJECTIVES, Objective
    from plumbing.randomness import sample_keys
    from sample import decode_next_token
    OBJECTIVES["asked"] = Objective(ranks, left_to_right=True, next_token=True)
    keys = sample_keys(case["seed"], start, copies_differ=True)
    tokens, stats = decode_next_token(model, task, "asked", start, case["temperature"], keys,
                                      use_cache=case["use_cache"])
    calls = [{**call, "tokens": call["tokens"][:8]} for call in model.calls]
    return {"tokens": tokens.tolist(), "stats": plain(stats), "calls": calls}


def ask_6(case):
    import torch

    from course.ex6 import chance_level, fork_and_after
    prompt = torch.tensor(case["prompt"])
    if case["kind"] == "chance":
        return float(chance_level(prompt, case["A"]))
    return [float(x) for x in fork_and_after(prompt, torch.tensor(case["answers"]))]


def ask_7(case):
    from metrics import wilson
    return [float(x) for x in wilson(case["k"], case["n"], **case["z"])]


def ask_8(case):
    import torch

    from course import ex8
    if case["kind"] == "tv":
        return float(ex8.total_variation(torch.tensor(case["q"], dtype=torch.double)))
    boards = torch.tensor(case["boards"])
    if case["kind"] == "law":
        return plain(ex8.law(boards, case["order"], case["k"]))
    return [float(ex8.dependence(boards, case["cells"])),
            float(ex8.entropy_bound(boards, case["cells"]))]


def ask_9(case):
    """Add the row, train three steps, decode; the ranks and tokens of a forward pass in training.
    """
    import torch

    import objectives
    import train
    from config import Config
    from course.ex9 import sixth
    from data import make_task
    from plumbing.randomness import sample_keys
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
    start, dials = task.test_set(5)[0], objectives.make_dials(name, task)
    keys = sample_keys(case["seed"], start, copies_differ=True)
    if rule.next_token:
        tokens, _ = decode_next_token(state.model, task, name, start, dials.temperature, keys)
    else:
        tokens, _ = decode(state.model, task, name, start, dials, keys)
    seen = []
    for turn, W in (*case["turns"], (None, None)):
        small = toy(case)
        if turn is None:  # what the objective itself hides
            g = torch.Generator().manual_seed(case["seed"])
            drawn, window = rule.hide(1, small.A, "2", g, "cpu", None)
        else:
            drawn, window = torch.tensor([turn]), W
        model, x = Table(case["logits"]), torch.tensor([case["tokens"]])
        nats = rule.nats(model, x, drawn, window, small, rule.ranks)
        seen.append({**model.calls[0], "nats": nats.tolist(), "turn": drawn.tolist()})
    return {"before": before, "name": str(name), "next_token": bool(rule.next_token),
            "losses": losses, "moved": moved, "start": start.tolist(), "tokens": tokens.tolist(),
            "P": task.P, "K": task.K, "seen": seen}


# --------------------------------------------------------------------------------------------------
# The process


def guard(tree, forbidden):
    """Opening a file of the reference ends this process; an audit hook cannot be taken off."""
    allowed = tuple(os.path.realpath(p) + os.sep for p in
                    (tree, os.getcwd(), sys.prefix, sys.base_prefix))
    root = os.path.realpath(forbidden) + os.sep

    def hook(event, args):
        if event == "open" and isinstance(args[0], str | bytes):
            file = os.path.realpath(os.fsdecode(args[0]))
            if file.startswith(root) and not file.startswith(allowed):
                os._exit(TOUCHED_THE_REFERENCE)

    if allowed[0] != root:
        sys.addaudithook(hook)


def ask(number, cases):
    """-> answers, one for each case; the last one tells of an error, after which nothing is asked.
    """
    answers = []
    for case in cases:
        try:
            answers.append({"is": globals()[f"ask_{number}"](case)})
        except Exception as e:  # whatever it is, it is the student's, and graded
            answers.append({"error": type(e).__name__})
            break
    return answers


def answer(tree, number, cases, answers):
    """Ask, in the process that is to be spoiled, and write the answers down."""
    sys.path.insert(0, tree)
    with open(answers, "x", encoding="utf-8") as file:
        text = json.dumps(ask(number, cases))
        file.write(text)


def main(tree, number, cases, answers, forbidden):
    with open(cases, encoding="utf-8") as file:
        cases = json.load(file)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    import torch
    torch.set_num_threads(1)
    guard(tree, forbidden)
    answer(tree, int(number), cases, answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
