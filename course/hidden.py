"""What the grader asks, and what is right: cases from a fresh seed, answers by brute force.

    B batch   P prompt   A answer cells   S = P + A   K symbols   MASK = K
    level <= 0 known, 1, 2, 3, ... unknown   u unknown cells   c candidates   n latents   W window

cases_<k>(r) draws the cases of exercise k from a random.Random; check_<k>(case, answer) raises
Wrong with a sentence that says what is wrong and no number of the case. Nothing here calls the
project's solutions, and no student's code runs in this process: see asking.py. The statistical
bounds are six standard errors wide.
"""
import itertools
import math

NEAR = 1e-4  # fp32 against sums in double precision
UNIFORM = [1.0, 1.0, 0.0]


class Wrong(Exception):
    """A sentence for the student."""


def claim(condition, why):
    if not condition:
        raise Wrong(why)


def close(a, b, tolerance=NEAR):
    return math.isfinite(a) and abs(a - b) <= tolerance * max(1.0, abs(b))


def within(rate, p, n):
    """Is a rate observed in n draws within six standard errors of p?"""
    return abs(rate - p) <= 6 * math.sqrt(p * (1 - p) / n) + 1e-9


def table(r, *shape):
    """Random logits, nested lists."""
    if not shape:
        return r.gauss(0, 1.5)
    return [table(r, *shape[1:]) for _ in range(shape[0])]


def nll(logits, symbol):
    most = max(logits)
    return most + math.log(sum(math.exp(x - most) for x in logits)) - logits[symbol]


def softmax(logits):
    return [math.exp(-nll(logits, symbol)) for symbol in range(len(logits))]


def readings_of(logits, readings):
    """What asking.Table returns: the prediction, or two readings, the first one reversed."""
    return [logits[::-1], logits] if readings else [logits]


def sees(rank):
    """The rule, pair by pair: rank (T,) -> T rows of T."""
    return [[k < q or i == j or (k == q and q <= 0) for j, k in enumerate(rank)]
            for i, q in enumerate(rank)]


def sees_or_all(rank, T):
    """None and "causal" stand for ranks, too; of several rows the first counts."""
    rank = {"causal": list(range(1, T + 1)), None: [0] * T}.get(
        rank if rank is None or isinstance(rank, str) else 0, rank)
    while isinstance(rank[0], list):
        rank = rank[0]
    return sees(rank)


def random_level(r, A, m):
    """A random order: known cells 0, -1, ..., m unknown ones 1..m."""
    level = [i + 1 - (A - m) for i in range(A)]
    r.shuffle(level)
    return level


# --------------------------------------------------------------------------------------------------
# 1 who may look at whom


def cases_1(r):
    def ranks(*shape):
        if not shape:
            return r.choice((-2, -1, 0, 0, 1, 1, 2, 3, math.inf))
        return [ranks(*shape[1:]) for _ in range(shape[0])]

    cases = [{"rank": ranks(*shape), "dtype": dtype} for shape in ((7,), (3, 6), (2, 2, 5))
             for dtype in ("float32", "float64")]
    whole = [[r.choice((-3, -1, 0, 1, 2, 4)) for _ in range(8)] for _ in range(4)]
    return [*cases, {"rank": whole, "dtype": "int64"}, {"rank": [5], "dtype": "int64"}]


def check_1(case, answer):
    claim(answer["dtype"] == "torch.bool", "visible() returns something that is not bool")

    def right(rank):
        return [right(row) for row in rank] if isinstance(rank[0], list) else sees(rank)

    claim(answer["sees"] == right(case["rank"]), "visible() is not the rule of its docstring")


# --------------------------------------------------------------------------------------------------
# 2 the masking process and the bound


def cases_2(r):
    A = r.randint(4, 6)
    row = [False] * (A - 1) + [True]
    r.shuffle(row)
    none, mixed = [False] * A, [3.0, 1.0, r.choice((0.2, 0.25, 0.4))]
    ragged = [[r.random() < 0.4 for _ in range(A - 1)] + [False] for _ in range(200)]
    cases = [{"kind": "number", "maskable": maskable, "rates": rates, "seed": r.randrange(10**6)}
             for maskable, rates in (([A] * 2400, UNIFORM), ([A] * 2400, [3.0, 2.0, 0.0]),
                                     ([A] * 2400, mixed),
                                     ([A - sum(given) for given in ragged], UNIFORM))]
    cases += [{"kind": "levels", "given": given, "copies": copies, "left_to_right": left_to_right,
               "rates": rates, "seed": r.randrange(10**6)}
              for given, copies, left_to_right, rates in (
                  ([none], 2400, False, UNIFORM), ([none], 2400, True, UNIFORM),
                  ([row], 2400, False, UNIFORM), ([none], 2400, False, [3.0, 2.0, 0.0]),
                  ([row], 300, True, UNIFORM), (ragged, 1, False, UNIFORM),
                  ([row], 2400, True, mixed))]
    for i in range(8):
        P, A, K = r.randint(1, 3), 4 + i % 2, 3
        level = [random_level(r, A, 1 + (i + b) % A) for b in range(5)]
        tokens = [[K + 1] * P + [r.randrange(K) for _ in range(A)] for _ in level]
        cases.append({"kind": "loss", "P": P, "A": A, "K": K, "level": level, "tokens": tokens,
                      "logits": table(r, P + A, K), "ranks": ("raw", "none")[i % 2],
                      "W": A if i < 4 else r.randint(1, 2), "tensor": i > 5, "readings": i % 4 > 1})
    return cases


def check_2(case, answer):
    {"number": check_number, "levels": check_levels, "loss": check_loss}[case["kind"]](case, answer)


def check_number(case, answer):
    claim(answer["whole"], "draw_num_masked() returns no integers")
    check_strata(answer["m"], case["maskable"], case["rates"])


def check_strata(m, maskable, rates):
    """Of samples with equally many maskable cells each m is as frequent as its rates say."""
    claim(len(m) == len(maskable) and all(1 <= x <= F for x, F in zip(m, maskable)),
          "the number of masked cells is not in 1..maskable")
    a, b, uniform = rates
    few, F = math.ceil(uniform * len(m)), maskable[0]
    for part, a, b in ((m[:few], 1, 1), (m[few:], a, b)) if min(maskable) == max(maskable) else ():
        below = [1 - (1 - (x / F) ** a) ** b for x in range(F + 1)]  # P(x or fewer are masked)
        claim(all(abs(part.count(x) - len(part) * (below[x] - below[x - 1])) <= 2
                  for x in range(1, F + 1)),
              "m does not have the distribution of its rates (uniform at 1, 1, 0), stratified over "
              "the batch")


def check_levels(case, answer):
    levels, given = answer["level"], case["given"] * case["copies"]
    claim(answer["whole"] and [len(level) for level in levels] == [len(row) for row in given],
          "draw_levels() returns no (B, A) integers")
    maskable = [[i for i, known in enumerate(row) if not known] for row in given]
    m = [sum(t > 0 for t in level) for level in levels]
    for level, cells, count in zip(levels, maskable, m):
        masked = [i for i, t in enumerate(level) if t > 0]
        claim(set(masked) <= set(cells), "draw_levels() masks a given cell")
        claim(sorted(level[i] for i in masked) == list(range(1, count + 1)),
              "the levels are not 1..m")
        if case["left_to_right"]:
            claim([level[i] for i in cells[len(cells) - count:]] == list(range(1, count + 1)),
                  "left to right: the masked cells are not the last ones in their order")
    check_strata(m, [len(cells) for cells in maskable], case["rates"])
    if case["left_to_right"] or len(case["given"]) > 1:
        return
    cells, F = maskable[0], len(maskable[0])
    for count in range(1, F + 1):  # whatever m is, every order of the cells is equally likely
        group = [level for level, x in zip(levels, m) if x == count]
        for i in cells:
            claim(within(sum(t[i] > 0 for t in group) / len(group), count / F, len(group)),
                  "some cells are masked more often than others")
            claim(within(sum(t[i] == 1 for t in group) / len(group), 1 / F, len(group)),
                  "some cells come first more often than others")


def check_loss(case, answer):
    P, K = case["P"], case["K"]
    claim(len(answer["calls"]) == 1, "masked_loss() needs one forward pass")
    call = answer["calls"][0]
    for b, level in enumerate(case["level"]):
        tokens, (seen, places) = case["tokens"][b], (call["tokens"][b], call["positions"][b])
        noisy = tokens[:P] + [K if t > 0 else x for t, x in zip(level, tokens[P:])]
        claim(len(seen) == len(noisy), "the model does not get prompt and answer")
        leak = any(t > 0 and seen[P + i] != K for i, t in enumerate(level))
        claim(not leak, "the model reads a symbol that should be masked")
        claim(seen == noisy, "more than the masked cells is changed")
        claim(places == list(range(len(noisy))), "the positions are not 0..S-1")
        scored = [i for i, t in enumerate(level) if 0 < t <= case["W"]]
        for r in range(1 + case["readings"]):
            right = sum(nll(readings_of(case["logits"][P + i], case["readings"])[r], tokens[P + i])
                        for i in scored) / len(scored)
            loss = answer["loss"][r][b] if case["readings"] else answer["loss"][b]
            claim(close(loss, right),
                  "the loss is not the mean of -log p over the first W masked cells")
    rank = call["rank"]
    if case["ranks"] == "none":
        claim(rank is None or sees_or_all(rank, 2)[0][1], "a ranking of None sees everything")
        return
    claim(rank == [[0] * P + level for level in case["level"]],
          "the rank is not the objective's ranking behind a prompt of rank 0")


# --------------------------------------------------------------------------------------------------
# 3 mdm, sidm and scdm are rankings


def cases_3(r):
    return [{"name": name, "level": [random_level(r, A, r.randint(1, A - 1)) for _ in range(3)],
             "W": W} for name in ("joint", "independent", "semi_causal")
            for A, W in ((6, None), (7, 7), (5, 2))]


def check_3(case, answer):
    who = {"joint": "mdm", "independent": "sidm", "semi_causal": "scdm"}[case["name"]]
    for ranks in answer:
        for b, level in enumerate(case["level"]):
            rank = [0] * len(level) if ranks is None else ranks[b]
            matrix, level = sees([0, *rank]), [0, *level]  # behind a prompt token of rank 0
            for q, k in itertools.product(range(len(level)), repeat=2):
                known_q, known_k = level[q] <= 0, level[k] <= 0
                right = {"mdm": True, "sidm": known_k or q == k,
                         "scdm": known_k or q == k or 0 < level[k] < level[q]}[who]
                kinds = ["a known" if known else "an unknown" for known in (known_q, known_k)]
                not_ = "does not see" if right else "sees"
                claim(matrix[q][k] == right, f"{who}: {kinds[0]} cell {not_} {kinds[1]} one")


# --------------------------------------------------------------------------------------------------
# 4 decode with absent latents, and its cost


def cases_4(r):
    def asked(order="random", candidates=1, latents=0, tokens_per_step=1):
        return {"order": order, "candidates": candidates, "latents": latents,
                "tokens_per_step": tokens_per_step}

    sampling = [asked(latents=n, tokens_per_step=k, candidates=k)
                for n in (0, 1, 3, 99) for k in (1, 2)]
    sampling += [asked("left_to_right", 2, n, 2) for n in (0, 2)]
    sampling += [asked("confidence", 3, 0), asked("margin", 3, 2), asked("entropy", 4, 1),
                 asked("confidence", 99, 99), asked("confidence", 3, 1, 2)]
    cases = []
    for i, one in enumerate(sampling + sampling[:8]):
        P, A, K = r.randint(1, 3), r.randint(6, 8), 4
        unknown = [A] * 3 if i % 2 else [r.randint(0, A - 1) for _ in range(4)] + [A]
        cases.append({"kind": "decode", "P": P, "A": A, "K": K, "seed": r.randrange(10**6),
                      "start": [start_of(r, P, A, K, u) for u in unknown],
                      "sampling": {**one, "temperature": float(i % 4 == 2)},
                      "logits": table(r, P + A, K), "left_to_right": i >= len(sampling),
                      "ranks": "none" if i % 3 == 0 and one["latents"] in (0, 99) else "raw"})
    cases.append({"kind": "law", "P": 1, "A": 5, "K": 2, "seed": r.randrange(10**6),
                  "start": [[3] + [2] * 5] * 1500, "left_to_right": False, "ranks": "raw",
                  "sampling": {**asked(latents=2), "temperature": 0.5},
                  "logits": [[0.0, r.choice((-1.0, 1.0))] for _ in range(6)]})
    return cases


def start_of(r, P, A, K, unknown):
    """A start with this many unknown cells."""
    cells = [K] * unknown + [r.randrange(K) for _ in range(A - unknown)]
    r.shuffle(cells)
    return [K + 1] * P + cells


def c_and_n(u, sampling):
    """Of u unknown cells -> c candidates, n latents."""
    c = min(max(sampling["tokens_per_step"], sampling["candidates"]), u)
    return c, min(sampling["latents"], u - c)


def certainty(probs, order):
    first, second = sorted(probs, reverse=True)[:2]
    if order == "entropy":
        return sum(p * math.log(p) for p in probs)
    return first - second if order == "margin" else first


def check_4(case, answer):
    if case["kind"] == "law":
        return check_random(case, answer)
    sampling, P, A, K = case["sampling"], case["P"], case["A"], case["K"]
    k, probs = sampling["tokens_per_step"], [softmax(logits) for logits in case["logits"]]
    known = [[i for i, x in enumerate(row) if x != K] for row in case["start"]]
    unknown = [P + A - len(cells) for cells in known]
    for b, row in enumerate(case["start"]):
        check_answer(case, row, answer["tokens"][b], probs)
        left = range(unknown[b], 0, -k)
        pairs = sum(P + A - u + sum(c_and_n(u, sampling)) for u in left)
        claim([answer["stats"]["nfe"][b], answer["stats"]["tokens"][b]] == [len(left), pairs],
              "passes or tokens are not those of the cost formula")
        sure = sum(max(probs[i]) for i, x in enumerate(row) if x == K) / max(1, unknown[b])
        claim(close(answer["stats"]["confidence"][b], sure if unknown[b] else 1.0),
              "the confidence is not the largest probability at each cell, averaged")
    claim(answer["alone"] == answer["tokens"],
          "a sample decoded alone differs from the same sample in a batch")
    passes = [(u, [b for b in sorted(range(len(unknown)), key=lambda b: -unknown[b])
                   if unknown[b] >= u and (unknown[b] - u) % k == 0])
              for u in range(max(unknown), 0, -1)]
    passes = [(u, rows) for u, rows in passes if rows]
    claim([len(call["tokens"]) for call in answer["calls"]] == [len(rows) for _, rows in passes],
          "decode_pass() needs one forward pass over its samples")
    for (u, rows), call in zip(passes, answer["calls"]):
        for i, b in enumerate(rows):
            tokens, places = call["tokens"][i], call["positions"][i]
            check_pass(case, tokens, places, call["rank"], i, u)
            claim({p for p, x in zip(places, tokens) if x != K} == set(known[b]),
                  "not the k candidates of largest certainty are committed")
            c = c_and_n(u, sampling)[0]
            last = sorted(places[len(places) - c:],
                          key=lambda p: -certainty(probs[p], sampling["order"]))
            known[b] = known[b] + last[:k]


def check_answer(case, start, tokens, probs):
    K = case["K"]
    for i, (before, after) in enumerate(zip(start, tokens, strict=True)):
        if before != K:
            claim(after == before, "a cell that is known is changed")
            continue
        claim(0 <= after < K, "a cell is left without a symbol")
        claim(case["sampling"]["temperature"] or probs[i][after] == max(probs[i]),
              "T = 0: a cell does not get the most probable symbol")


def check_pass(case, tokens, positions, ranks, row, u):
    """One sample in one pass: who is present, and at which level."""
    P, A, K, sampling = case["P"], case["A"], case["K"], case["sampling"]
    c, n = c_and_n(u, sampling)
    claim(len(positions) == P + A - u + c + n, "a pass holds pairs that nobody needs, or too few")
    claim(len(set(positions)) == len(positions), "a cell is in a pass twice")
    masked, last = [p for p, x in zip(positions, tokens) if x == K], positions[-c:]
    claim(len(masked) == c + n, "there are not c + n unknown cells in a pass")
    claim(positions[:P] == list(range(P)), "the prompt does not come first")
    claim(set(last) <= set(masked), "the last c of a pass are not unknown cells")
    if case["ranks"] == "none":
        claim(ranks is None or all(sees_or_all(ranks, len(positions))[0]),
              "a ranking of None sees everything")
    else:
        claim(ranks is not None and len(ranks[0]) == len(positions), "not every pair has a rank")
        rank = dict(zip(positions, ranks[row if len(ranks) > 1 else 0]))
        claim(all(rank[p] == 0 for p in range(P)), "a prompt token has no rank 0")
        claim(max(rank[p] for p in rank if p not in masked) <= 0, "a known cell has no level <= 0")
        claim(all(rank[p] == n + 1 for p in last), "the candidates do not have level n + 1")
        claim(sorted(rank[p] for p in masked if p not in last) == list(range(1, n + 1)),
              "the latents do not have levels 1..n")
    absent = [p for p in range(P, P + A) if p not in positions]
    if case["left_to_right"] or sampling["order"] == "left_to_right":
        claim(not absent or max(last) < min(absent), "left to right: a later cell comes first")
    if case["left_to_right"]:
        claim(not absent or max(masked) < min(absent), "left to right: latents do not follow")
        claim(sorted(masked)[:c] == sorted(last), "left to right: a latent comes before")


def check_random(case, answer):
    """Candidates and latents are random cells, drawn anew in every pass; so are the symbols."""
    B, P, A = len(case["start"]), case["P"], case["A"]
    first, second = answer["calls"][:2]
    for place in (-1, -2, -3):
        for i in range(P, P + A):
            count = sum(row[place] == i for row in first["positions"])
            claim(within(count / B, 1 / A, B), "order random: some cells come first more often")
    same = sum(set(a[-3:-1]) == set(b[-3:-1]) or b[-1] in a[-3:-1]
               for a, b in zip(first["positions"], second["positions"]))
    # two of four: the same pair 1/6, or the next candidate was a latent 1/2, of which none is both
    claim(within(same / B, 2 / 3, B), "latents are not drawn anew in every pass")
    p = [softmax([x / case["sampling"]["temperature"] for x in logits])[0]
         for logits in case["logits"]]
    for i, j in itertools.combinations_with_replacement(range(P, P + A), 2):
        both = sum(row[i] == row[j] == 0 for row in answer["tokens"]) / B
        claim(within(both, p[i] if i == j else p[i] * p[j], B),
              "symbols are not drawn from the softmax at this temperature, each for itself")


# --------------------------------------------------------------------------------------------------
# 5 next token with a cache, and a window of latents


def cases_5(r):
    cases = []
    for A, W in ((6, 1), (6, 2), (6, 5), (6, 6), (5, 9), (6, None)):
        cuts = [0, A - 1, r.randint(0, A - 1)]  # how many are known
        level = [[i - cut for i in range(1, A + 1)] for cut in cuts]
        cases += [{"kind": "window", "level": level, "W": W, "tensor": tensor}
                  for tensor in (False, True) if not (tensor and W is None)]
    cases += [{"kind": "draw", "window": w, "A": 6, "draws": d, "seed": r.randrange(10**6)}
              for w, d in (("all", 1), ("1", 1), ("4", 1), ("11", 1), ("random", 6000))]
    for i in range(4):
        P, A, K = r.randint(1, 4), r.randint(4, 6), 3
        start = [[r.randrange(K) for _ in range(P + A)] for _ in range(4)]
        cases.append({"kind": "loss", "P": P, "A": A, "K": K, "start": start, "readings": i > 1,
                      "logits": table(r, P + A, K + 2, K), "ranks": ("raw", "causal")[i % 2]})
    for i in range(6):
        P, A, K = r.randint(1, 4), r.randint(4, 6), 3
        start = [[r.randrange(K) for _ in range(P)] + [K] * A for _ in range(4)]
        cases.append({"kind": "decode", "P": P, "A": A, "K": K, "temperature": 0.0,
                      "start": start, "logits": table(r, P + A, K + 2, K), "use_cache": i % 3 > 0,
                      "ranks": ("raw", "causal")[i % 2], "seed": r.randrange(10**6)})
    logits = [[r.sample((0.0, 1.0, 2.0), 3) for _ in range(5)] for _ in range(3)]  # never flat
    cases.append({"kind": "decode", "P": 1, "A": 2, "K": 3, "temperature": 0.5, "use_cache": True,
                  "start": [[4, 3, 3]] * 3000, "logits": logits, "ranks": "causal",
                  "seed": r.randrange(10**6)})
    return cases


def check_5(case, answer):
    {"window": check_window, "draw": check_draw, "loss": check_next_loss,
     "decode": check_next}[case["kind"]](case, answer)


def check_window(case, answer):
    W = math.inf if case["W"] is None else case["W"]
    for b, level in enumerate(case["level"]):
        level = [0, *level]  # behind a prompt token of rank 0
        rank = [0] * len(level) if answer is None else [0, *answer[b]]
        right = [[k <= W or i == j for j, k in enumerate(level)] for i, _ in enumerate(level)]
        claim(sees(rank) == right, "mtp: known cells and the first W unknown see each other, "
              "and nobody sees the rest")


def check_draw(case, answer):
    A = case["A"]
    if case["window"] != "random":
        right = A if case["window"] == "all" else min(A, int(case["window"]))
        return claim(answer == [right], "draw_window(): a window of a number or of all")
    for w in range(1, A + 1):
        p = math.log((w + 1) / w) / math.log(A + 1)
        claim(within(answer.count(w) / len(answer), p, len(answer)),
              "draw_window(): random is not uniform in log W")
    claim(set(answer) <= set(range(1, A + 1)), "draw_window(): outside of 1..A")


def check_rank_of_prefix(case, call):
    """Under either ranking a token sees itself and all before it."""
    T = len(call["tokens"][0])
    rank = call["rank"]
    if T == 1:
        return
    if case["ranks"] == "causal":
        claim(sees_or_all(rank, T) == sees(list(range(1, T + 1))), "a token sees a later one")
    else:
        wanted = [i - case["P"] + 1 for i in range(T)]
        claim(rank in (wanted, [wanted]), "the rank is not that of next_token_ranks()")


def check_next_loss(case, answer):
    P, A = case["P"], case["A"]
    claim(len(answer["calls"]) == 1, "next_token_loss() needs one forward pass")
    call = answer["calls"][0]
    check_rank_of_prefix(case, call)
    for b, row in enumerate(case["start"]):
        T = len(call["tokens"][b])
        clean = call["tokens"][b] == row[:T] and call["positions"][b] == list(range(T))
        claim(T >= P + A - 1 and clean, "the model does not read the clean tokens")
        for r in range(1 + case["readings"]):
            right = sum(nll(readings_of(case["logits"][i - 1][row[i - 1]], case["readings"])[r],
                            row[i]) for i in range(P, P + A)) / A
            loss = answer["loss"][r][b] if case["readings"] else answer["loss"][b]
            claim(close(loss, right), "the loss is not the mean of -log p over the answer, each "
                  "token predicted at the position before it")


def check_next(case, answer):
    P, A, K, rows = case["P"], case["A"], case["K"], answer["tokens"]
    sizes = [P if case["use_cache"] and i == 0 else 1 if case["use_cache"] else P + i
             for i in range(A)]
    claim(len(answer["calls"]) == A, "one forward pass for each token")
    cached = 0
    for i, (call, size) in enumerate(zip(answer["calls"], sizes)):
        claim(call["cached"] == (cached if case["use_cache"] else None),
              "the cache is not used")
        claim(len(call["tokens"][0]) == size, "the model reads a token twice, or not at all")
        for b in range(min(8, len(rows))):
            claim(call["tokens"][b] == rows[b][P + i - size:P + i], "the model reads wrong tokens")
            claim(call["positions"][b] == list(range(P + i - size, P + i)), "wrong positions")
        check_rank_of_prefix(case, call)
        cached += size
    for b, row in enumerate(rows):
        claim(row[:P] == case["start"][b][:P] and len(row) == P + A, "the prompt is changed")
    stats = answer["stats"]
    claim(stats["nfe"] == [A] * len(rows) and stats["tokens"] == [sum(sizes)] * len(rows),
          "nfe or tokens are not what the model was given")
    if case["temperature"]:
        logits = [x / case["temperature"] for x in case["logits"][P - 1][case["start"][0][P - 1]]]
        for s, p in enumerate(softmax(logits)):
            claim(within(sum(row[P] == s for row in rows) / len(rows), p, len(rows)),
                  "symbols are not drawn from the softmax at this temperature")
        return
    for b, row in enumerate(rows):
        sure = 0.0
        for i in range(P, P + A):
            logits = case["logits"][i - 1][row[i - 1]]
            claim(logits[row[i]] == max(logits), "T = 0: a token is not the most likely one")
            sure += math.exp(-nll(logits, row[i])) / A
        claim(close(stats["confidence"][b], sure), "the confidence is not the mean probability")


# --------------------------------------------------------------------------------------------------
# 6 the star graph


def star(r, arms, length):
    """-> edges in a random order, the arms as lists of nodes that begin with the start."""
    names = r.sample(range(100), 1 + arms * (length - 1))
    ways = [[names[0]] + names[1 + a * (length - 1):1 + (a + 1) * (length - 1)]
            for a in range(arms)]
    edges = [edge for way in ways for edge in zip(way, way[1:])]
    r.shuffle(edges)
    return edges, ways


def prompt_of(edges, start, goal):
    return [node for edge in edges for node in edge] + [start, goal]


def cases_6(r):
    cases = []
    for arms, length in ((2, 4), (3, 5), (5, 3)):
        prompts, answers = [], []
        for i in range(12):
            edges, ways = star(r, arms, length)
            way, other = r.sample(ways, 2)
            answer = list(r.choice((way, other, other)))
            if i % 3 == 0:
                answer[r.randrange(1, length)] = r.randrange(100, 110)
            prompts.append(prompt_of(edges, way[0], way[-1]))
            answers.append(answer)
        cases.append({"kind": "chance", "prompt": prompts, "A": length})
        cases.append({"kind": "fork", "prompt": prompts, "answers": answers})
    for _ in range(3):  # any graph without cycles: forks further on, several ways, dead ends
        prompts = []
        for _ in range(6):
            edges = r.sample(list(itertools.combinations(range(6), 2)), 9)
            r.shuffle(edges)
            prompts.append(prompt_of(edges, 0, 5))
        cases.append({"kind": "chance", "prompt": prompts, "A": r.randint(3, 5)})
    return cases


def check_6(case, answer):
    rights = []
    for b, row in enumerate(case["prompt"]):
        edges, start, goal = list(zip(row[0:-2:2], row[1:-2:2])), row[-2], row[-1]
        if case["kind"] == "chance":
            rights.append([arrives(edges, start, goal, case["A"] - 1)])
            continue
        way = [goal]
        while way[-1] != start:
            way.append(next(a for a, b in edges if b == way[-1]))
        steps = list(zip(case["answers"][b], case["answers"][b][1:]))
        rights.append([steps[0][1] == way[-2]] + [step in edges for step in steps[1:]])
    mean = [sum(column) / len(rights) for column in zip(*rights)]
    if case["kind"] == "chance":
        return claim(close(answer, mean[0]), "chance_level(): not the fraction of graphs that a "
                     "random walk along the edges solves")
    claim(close(answer[0], mean[0]), "the accuracy at the fork")
    claim(close(answer[1], sum(mean[1:]) / len(mean[1:])), "the accuracy after the fork")


def arrives(edges, node, goal, steps):
    """The probability that a random walk of that many steps along edges ends at the goal."""
    if steps == 0:
        return float(node == goal)
    ahead = [b for a, b in edges if a == node]
    return sum(arrives(edges, b, goal, steps - 1) / len(ahead) for b in ahead)


# --------------------------------------------------------------------------------------------------
# 7 the dial, with an interval


def cases_7(r):
    pairs = [(0, 0), (0, 9), (9, 9), (1, 2), (150, 200)]
    for n in (7, 60, 1000, 4096):
        pairs += [(r.randint(1, n - 1), n), (r.choice((1, n - 1)), n)]
    cases = [{"k": k, "n": n, "z": {}} for k, n in pairs]
    return cases + [{"k": r.randint(1, 49), "n": 50, "z": {"z": z}} for z in (1.0, 2.576)]


def check_7(case, answer):
    """The ends are the rates p at which the observed k is z standard deviations away."""
    k, n, z = case["k"], case["n"], case["z"].get("z", 1.96)
    if n == 0:
        return claim(answer == [0, 1], "wilson(): with no trial every rate is possible")

    def end(sign):
        inside, outside = k / n, 0.0 if sign < 0 else 1.0
        for _ in range(60):
            p = (inside + outside) / 2
            far = abs(k / n - p) > z * math.sqrt(p * (1 - p) / n)
            inside, outside = (inside, p) if far else (p, outside)
        return inside

    claim(len(answer) == 2 and all(math.isfinite(x) and abs(x - end(sign)) < 1e-6
                                   for x, sign in zip(answer, (-1, 1))),
          "wilson(): not the rates at which k is z standard deviations away")


# --------------------------------------------------------------------------------------------------
# 8 two cells per step


def cases_8(r):
    cases = []
    for A, M, k in ((4, 5, 1), (4, 6, 2), (5, 7, 2), (6, 9, 3), (4, 6, 4)):
        rows = r.sample(list(itertools.product(range(3), repeat=A)), M)
        order = r.sample(range(A), A)
        cases.append({"kind": "law", "boards": rows, "order": order, "k": k})
        cells = r.sample(range(A), r.randint(2, 3))
        cases.append({"kind": "entropy", "boards": rows, "cells": cells})
    for M in (4, 9):
        q = [r.random() for _ in range(M)]
        for total in (1.0, 0.6):
            cases.append({"kind": "tv", "q": [x * total / sum(q) for x in q]})
    return cases


def check_8(case, answer):
    if case["kind"] == "tv":
        q = case["q"]
        beyond = max(0.0, 1 - sum(q))
        right = sum(max(0.0, x - 1 / len(q)) for x in q) + beyond  # what q has too much
        return claim(close(answer, right), "total_variation(): boards that break the rules count")
    boards = [tuple(row) for row in case["boards"]]
    if case["kind"] == "law":
        right = [sampled(boards, row, case["order"], case["k"]) for row in boards]
        return claim(len(answer) == len(right) and all(map(close, answer, right)),
                     "law(): not the probability with which the sampler makes each board")
    each = [entropy(boards, [cell]) for cell in case["cells"]]
    claim(close(answer[0], sum(each) - entropy(boards, case["cells"])),
          "dependence(): not the sum of the entropies less the joint entropy, in nats")
    claim(close(answer[1], sum(each) - max(each)), "entropy_bound(): not sum H - max H, in nats")


def sampled(boards, row, order, k):
    """In each step every cell is drawn from what is known when the step begins."""
    q, fits = 1.0, boards
    for i in range(0, len(order), k):
        cells = order[i:i + k]
        for cell in cells:
            q *= sum(b[cell] == row[cell] for b in fits) / len(fits)
        fits = [b for b in fits if all(b[cell] == row[cell] for cell in cells)]
    return q


def entropy(boards, cells):
    seen = [tuple(b[cell] for cell in cells) for b in boards]
    return -sum(p * math.log(p) for p in (seen.count(s) / len(seen) for s in set(seen)))


# --------------------------------------------------------------------------------------------------
# 9 an objective of your own


def cases_9(r):
    P, A, K = 2, 5, 3
    levels = [(random_level(r, A, 3), A), ([-1, 0, 1, 2, 3], 2)]
    return [{"P": P, "A": A, "K": K, "seed": r.randrange(10**6), "levels": levels,
             "tokens": [K + 1] * P + [r.randrange(K) for _ in range(A)],
             "logits": table(r, P + A, K)}]


def check_9(case, answer):
    claim(answer["name"] not in answer["before"], "the name is taken")
    claim(all(math.isfinite(x) for x in answer["losses"]) and answer["moved"] > 0,
          "three steps of training give no finite losses, or change nothing")
    start, tokens = answer["start"], answer["tokens"]
    claim(len(tokens) == len(start) and all(len(row) == len(start[0]) for row in tokens),
          "decoding returns another shape")
    claim(all(row[:answer["P"]] == s[:answer["P"]] and max(row[answer["P"]:]) < answer["K"]
              for row, s in zip(tokens, start)), "decoding leaves cells without a symbol")
    for seen in answer["seen"]:
        check_leak(case, answer["next_token"], seen)
    signature = [sees_or_all(s["rank"], len(s["tokens"][0])) for s in answer["seen"][:2]]
    claim(signature not in signatures(case, answer["next_token"]),
          "who sees whom is that of one of the five")


def check_leak(case, next_token, seen):
    """The model does not see what it is scored on."""
    P, K, (tokens,), (level,) = case["P"], case["K"], seen["tokens"], seen["level"]
    claim(math.isfinite(seen["loss"][0]), "the loss is not finite: is anything scored?")
    if not next_token:
        claim(all(tokens[P + i] == K for i, t in enumerate(level) if t > 0) and max(level) > 0,
              "the model reads a symbol that should be masked")
        return
    matrix, T = sees_or_all(seen["rank"], len(tokens)), len(tokens)
    reach = [set(k for k in range(T) if matrix[q][k]) for q in range(T)]
    for _ in range(T):
        reach = [set().union(*(reach[k] for k in ks)) for ks in reach]
    claim(all(max(reach[q]) <= q for q in range(P - 1, T)), "a token is seen where it is predicted")


def signatures(case, next_token):
    """The five objectives, on the two levels of the case: who sees whom."""
    P, A = case["P"], case["A"]
    if next_token:
        causal = sees(list(range(1, P + A)))
        return [[causal, causal]]
    five = []
    for name in ("mdm", "sidm", "scdm", "mtp"):
        both = []
        for level, W in case["levels"]:
            rank = [{"mdm": 0, "sidm": min(max(t, 0), 1), "scdm": max(t, 0),
                     "mtp": math.inf if t > W else 0}[name] for t in level]
            both.append(sees([0] * P + rank))
        five.append(both)
    return five
