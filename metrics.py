"""Metrics: each has one definition, here; summarize() reports them.

    solved     rule-valid and consistent with what was given; any valid answer counts (task.check)
    exact      equal to the reference, among the samples that have one (`references`)
    cell_acc   share of the cells to be found that equal the reference
    distinct   different answers among all of them
    nfe        forward passes per sample, mean
    tokens     (token, position) pairs per sample, summed over passes, mean
    seconds    decoding all samples, on the wall clock
    undone     with --decoder: cells committed and made unknown again, mean
    order_tau  with --decoder: Kendall's tau of the order of commits and of cells, mean
"""


def wilson(k, n, z=1.96):
    """The 95 % Wilson interval of k successes in n trials -> (low, high) as rates."""
    if n == 0:
        return 0.0, 1.0
    p, zz = k / n, z * z / n
    half = z * (p * (1 - p) / n + zz / (4 * n)) ** 0.5
    return max(0.0, (p + zz / 2 - half) / (1 + zz)), min(1.0, (p + zz / 2 + half) / (1 + zz))


SUMMED = ("nfe", "tokens", "undone")  # of each sample, over its restarts
MEANS = (*SUMMED, "order_tau")  # reported as means over samples; the last two are of decoders/


def summarize(task, start, answers, references, stats, seconds):
    """What is reported of decoded samples -> plain numbers; `solved` (num,) is put into stats."""
    stats["solved"] = task.check(start, answers)
    num, solved = len(answers), int(stats["solved"].sum())
    report = {"num": num, "solved": solved, "solved_rate": solved / num,
              "interval": wilson(solved, num), "distinct": len(answers.unique(dim=0)),
              **score(task, start, answers, references)}
    for name in (name for name in MEANS if name in stats):
        mean = stats[name].double().mean().item()
        report[name] = int(mean) if mean.is_integer() else round(mean, 2)
    return dict(report, seconds=round(seconds, 4))


def score(task, start, answers, references):
    """What can only be said where there is a reference -> references, exact, cell_acc."""
    if references is None:
        return {"references": 0, "exact": None, "cell_acc": None}
    has, blank = references[:, 0] >= 0, task.blanks(start)
    equal = (answers == references)[has]
    to_find = blank[has]
    if not len(equal):
        return {"references": 0, "exact": None, "cell_acc": None}
    found, cells = int((equal & to_find).sum()), int(to_find.sum())
    return {"references": len(equal), "exact": int(equal.all(dim=1).sum()),
            "cell_acc": found / cells if cells else 1.0}
