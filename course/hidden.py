"""What the grader asks, and what is right: cases from a fresh seed, answers by brute force.

    B batch   P prompt   A answer cells   S = P + A   K symbols   MASK = K
    turn <= 0 known, 1, 2, 3, ... unknown   c candidates   n latents   W window

cases_<k>(r) draws the cases of exercise k from a random.Random; check_<k>(case, answer) raises
Wrong with a sentence that tells what is wrong and no number of the case. Nothing here calls the
project's solutions, and no student's code runs in this process: see asking.py. Statistical bounds
are six standard errors.
"""
import itertools
import math

NEAR = 1e-4  # fp32 against sums in double precision


class Wrong(Exception):
    """A sentence for the student."""


def claim(condition, why):
    if not condition:
        raise Wrong(why)


def close(a, b, tolerance=NEAR):
    return math.isfinite(a) and abs(a - b) <= tolerance * max(1.0, abs(b))


def within(share, p, n):
    """Is an observed share of n draws within six standard errors of p?"""
    return abs(share - p) <= 6 * math.sqrt(p * (1 - p) / n) + 1e-9


def table(r, *shape):
    """Random logits, nested lists."""
    if not shape:
        return r.gauss(0, 1.5)
    return [table(r, *shape[1:]) for _ in range(shape[0])]


def nll(logits, symbol):
    most = max(logits)
    return most + math.log(sum(math.exp(x - most) for x in logits)) - logits[symbol]


def sees(rank):
    """The rule, pair by pair: rank (T,) -> T rows of T."""
    return [[k < q or i == j or (k == q and q <= 0) for j, k in enumerate(rank)]
            for i, q in enumerate(rank)]


def sees_or_all(rank, T):
    """None and "causal" stand for ranks, too."""
    rank = {"causal": list(range(1, T + 1)), None: [0] * T}.get(
        rank if rank is None or isinstance(rank, str) else 0, rank)
    while isinstance(rank[0], list):
        rank = rank[0]
    return sees(rank)


def random_turn(r, A, m):
    """A random order: known cells 0, -1, ..., m unknown ones 1..m."""
    turn = [i + 1 - (A - m) for i in range(A)]
    r.shuffle(turn)
    return turn


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
    A, cases = r.randint(4, 6), []
    plain = {"kind": "turns", "B": 2400, "A": A, "left_to_right": False, "given": None,
             "rates": [1.0, 1.0, 0.0]}
    row = [False] * (A - 1) + [True]
    r.shuffle(row)
    ragged = [[r.random() < 0.4 for _ in range(A - 1)] + [False] for _ in range(200)]
    for change in ({}, {"left_to_right": True}, {"given": [row] * 2400}, {"rates": [3.0, 2.0, 0.0]},
                   {"given": [row] * 300, "B": 300, "left_to_right": True},
                   {"given": ragged, "B": 200},
                   {"rates": [3.0, 1.0, r.choice((0.2, 0.25, 0.4))], "left_to_right": True,
                    "given": [row] * 2400}):
        cases.append({**plain, **change, "seed": r.randrange(10**6)})
    for i in range(8):
        P, A, K = r.randint(1, 3), 4 + i % 2, 3
        B = 5
        turn = [random_turn(r, A, 1 + (i + b) % A) for b in range(B)]
        tokens = [[K + 1] * P + [r.randrange(K) for _ in range(A)] for _ in range(B)]
        cases.append({"kind": "nats", "P": P, "A": A, "K": K, "turn": turn, "tokens": tokens,
                      "logits": table(r, P + A, K), "ranks": ("raw", "none")[i % 2],
                      "W": A if i < 4 else r.randint(1, 2), "tensor": i > 5})
    return cases


def check_2(case, answer):
    if case["kind"] == "nats":
        return check_nats(case, answer)
    A, turns, given = case["A"], answer["turn"], case["given"]
    claim(answer["whole"] and len(turns) == case["B"] and all(len(t) == A for t in turns),
          "draw_turns() returns no (B, A) integers")
    for b, turn in enumerate(turns):
        hidden = [t for t in turn if t > 0]
        claim(hidden, "draw_turns() hides no cell at all in some sample")
        claim(sorted(hidden) == list(range(1, len(hidden) + 1)), "the turns are not 1..m")
        free = [i for i in range(A) if given is None or not given[b][i]]
        claim(all(i in free for i in range(A) if turn[i] > 0), "draw_turns() hides a given cell")
        if case["left_to_right"]:
            last = free[len(free) - len(hidden):]
            claim([turn[i] for i in last] == list(range(1, len(hidden) + 1)),
                  "left to right: the hidden cells are not the last ones in their order")
    if given is None or all(row == given[0] for row in given):
        a, b, uniform = case["rates"]
        few = math.ceil(uniform * case["B"])
        if few:
            check_law(turns[:few], free, case["left_to_right"], 1, 1)
        check_law(turns[few:], free, case["left_to_right"], a, b)


def check_law(turns, free, left_to_right, a, b):
    """m is stratified; given m, every order of the free cells is equally likely."""
    B, F = len(turns), len(free)
    groups = {m: [t for t in turns if sum(x > 0 for x in t) == m] for m in range(1, F + 1)}
    below = [1 - (1 - (m / F) ** a) ** b for m in range(F + 1)]  # P(m or fewer are hidden)
    claim(all(abs(len(g) - B * (below[m] - below[m - 1])) <= 2 for m, g in groups.items()),
          "m, of the cells that may be hidden, does not have the law of its rates (uniform at "
          "1, 1), stratified over the batch")
    if left_to_right:
        return
    for m, group in groups.items():
        for i in free:
            claim(within(sum(t[i] > 0 for t in group) / len(group), m / F, len(group)),
                  "some cells are hidden more often than others")
            first = sum(t[i] == 1 for t in group) / len(group)
            claim(within(first, 1 / F, len(group)), "some cells come first more often than others")


def check_nats(case, answer):
    P, K = case["P"], case["K"]
    claim(len(answer["calls"]) == 1, "hidden_nats() needs one forward pass")
    call = answer["calls"][0]
    for b, turn in enumerate(case["turn"]):
        tokens, (seen, places) = case["tokens"][b], (call["tokens"][b], call["positions"][b])
        noisy = tokens[:P] + [K if t > 0 else x for t, x in zip(turn, tokens[P:])]
        claim(len(seen) == len(noisy), "the model does not get prompt and answer")
        leak = any(t > 0 and seen[P + i] != K for i, t in enumerate(turn))
        claim(not leak, "a hidden symbol is fed to the model")
        claim(seen == noisy, "more than the hidden cells is masked")
        claim(places == list(range(len(noisy))), "the positions are not 0..S-1")
        scored = [i for i, t in enumerate(turn) if 0 < t <= case["W"]]
        right = sum(nll(case["logits"][P + i], tokens[P + i]) for i in scored) / len(scored)
        claim(close(answer["nats"][b], right),
              "the loss is not the mean of -log p over the first W hidden cells")
    rank = call["rank"]
    if case["ranks"] == "none":
        claim(rank is None or sees_or_all(rank, 2)[0][1], "a ranking of None sees everything")
        return
    claim(rank == [[0] * P + turn for turn in case["turn"]],
          "the rank is not the objective's ranking behind a prompt of rank 0")


# --------------------------------------------------------------------------------------------------
# 3 mdm, sidm and scdm are rankings


def cases_3(r):
    return [{"name": name, "turn": [random_turn(r, A, r.randint(1, A - 1)) for _ in range(3)],
             "W": W} for name in ("joint", "independent", "semi_causal")
            for A, W in ((6, None), (7, 7), (5, 2))]


def check_3(case, answer):
    who = {"joint": "mdm", "independent": "sidm", "semi_causal": "scdm"}[case["name"]]
    for ranks in answer:
        for b, turn in enumerate(case["turn"]):
            rank = [0] * len(turn) if ranks is None else ranks[b]
            matrix, turn = sees([0, *rank]), [0, *turn]  # behind a prompt token of rank 0
            for q, k in itertools.product(range(len(turn)), repeat=2):
                known_q, known_k = turn[q] <= 0, turn[k] <= 0
                right = {"mdm": True, "sidm": known_k or q == k,
                         "scdm": known_k or q == k or 0 < turn[k] < turn[q]}[who]
                kinds = ["a known" if known else "an unknown" for known in (known_q, known_k)]
                not_ = "does not see" if right else "sees"
                claim(matrix[q][k] == right, f"{who}: {kinds[0]} cell {not_} {kinds[1]} one")


# --------------------------------------------------------------------------------------------------
# 4 decode with absent latents, and its cost


def dial(order="random", candidates=1, latents=0, tokens_per_step=1):
    return {"order": order, "candidates": candidates, "latents": latents,
            "tokens_per_step": tokens_per_step, "temperature": 0.0}


def cases_4(r):
    cases = [{"kind": "shares", "A": 9, "dials": dial("confidence", c, n, k)}
             for c in (1, 3, 20) for n in (0, 2, 50) for k in (1, 2)]
    dials = [dial(latents=n, tokens_per_step=k, candidates=k)
             for n in (0, 1, 3, 99) for k in (1, 2)]
    dials += [dial("left_to_right", 2, n, 2) for n in (0, 2)]
    dials += [dial("confidence", c, n, 1) for c, n in ((3, 0), (3, 2), (99, 99))]
    for i, one in enumerate(dials + dials[:8]):
        P, A, K = r.randint(1, 3), r.randint(6, 8), 4
        left = i >= len(dials)
        unknown = [A] * 3 if i % 2 else [r.randint(0, A - 1) for _ in range(4)] + [A]
        cases.append({"kind": "decode", "P": P, "A": A, "K": K, "seed": r.randrange(10**6),
                      "start": [start_of(r, P, A, K, u) for u in unknown], "dials": one,
                      "logits": table(r, P + A, K), "left_to_right": left, "keep": 99,
                      "ranks": "none" if i % 3 == 0 and one["latents"] in (0, 99) else "raw"})
    cases.append({"kind": "law", "P": 1, "A": 5, "K": 2, "seed": r.randrange(10**6),
                  "start": [[3] + [2] * 5] * 1500, "dials": dial(latents=2), "keep": 2,
                  "logits": table(r, 6, 2), "left_to_right": False, "ranks": "raw"})
    return cases


def start_of(r, P, A, K, unknown):
    """A start with this many cells to be found."""
    cells = [K] * unknown + [r.randrange(K) for _ in range(A - unknown)]
    r.shuffle(cells)
    return [K + 1] * P + cells


def share(u, dials):
    """Of u unknown cells -> c candidates, n latents."""
    c = min(max(dials["tokens_per_step"], dials["candidates"]), u)
    return c, min(dials["latents"], u - c)


def check_4(case, answer):
    dials, A, P, K = case["dials"], case["A"], case["P"] if "P" in case else 0, case.get("K")
    if case["kind"] == "shares":
        right = [list(share(u, dials)) for u in range(1, A + 1)]
        return claim(answer == right, "shares(): wrong numbers of candidates and latents")
    if case["kind"] == "law":
        return check_line(case, answer)
    unknown = [row[P:].count(K) for row in case["start"]]
    for b, row in enumerate(case["start"]):
        most = [max(range(K), key=case["logits"][i].__getitem__) for i in range(P + A)]
        filled = [most[i] if i >= P and x == K else x for i, x in enumerate(row)]
        claim(answer["tokens"][b] == filled, "a cell is not filled with what the model predicts")
        passes, pairs, u = 0, 0, unknown[b]
        while u > 0:
            passes, pairs = passes + 1, pairs + P + A - u + sum(share(u, dials))
            u -= dials["tokens_per_step"]
        claim([answer["stats"]["nfe"][b], answer["stats"]["tokens"][b]] == [passes, pairs],
              "passes or tokens are not those of the cost formula")
    for step, call in enumerate(answer["calls"]):
        left = [u - step * dials["tokens_per_step"] for u in sorted(unknown, reverse=True)]
        left = [u for u in left if u > 0]
        claim(len(call["tokens"]) == len(left), "a pass holds other samples than the unfinished")
        width = P + max(A - u + sum(share(u, dials)) for u in left)
        claim(len(call["tokens"][0]) == width, "a pass holds tokens that nobody needs, or too few")
        for b, u in enumerate(left):
            ranks = call["rank"]
            rank = None if ranks is None else ranks[b if len(ranks) > 1 else 0]
            check_pass(case, call["tokens"][b], call["positions"][b], rank, u, len(set(left)) > 1)


def check_pass(case, tokens, positions, rank, u, ragged):
    """One sample in one pass: who is there, and in which seat."""
    P, A, K, dials = case["P"], case["A"], case["K"], case["dials"]
    c, n = share(u, dials)
    size = P + A - u + c + n
    if rank is None or (case["ranks"] == "none" and not ragged):
        claim(case["ranks"] == "none" and not ragged, "there is no rank where one is needed")
        rank = [0] * len(tokens)
    there = [(p, x, q) for p, x, q in zip(positions, tokens, rank) if q != math.inf]
    claim(len(there) == size, "an empty seat can be seen, or somebody cannot")
    claim(len({p for p, _, _ in there}) == size, "a cell is there twice")
    masked = [p for p, x, _ in there if x == K]
    claim(len(masked) == c + n, "there are not c + n unknown cells in a pass")
    claim(set(range(P)) <= {p for p, _, _ in there}, "the prompt is not all there")
    claim(positions[:P] == list(range(P)), "the prompt is not in front")
    if case["ranks"] == "raw":
        by_rank = {p: q for p, _, q in there}
        claim(all(by_rank[p] == 0 for p in range(P)), "a prompt token has no rank 0")
        claim(all(q <= 0 for _, x, q in there if x != K), "a known cell has a turn above 0")
        claim(all(by_rank.get(p) == n + 1 for p in positions[len(positions) - c:]),
              "the candidates do not have turn n + 1, or do not sit in the last seats")
        others = sorted(by_rank[p] for p in masked if p not in positions[len(positions) - c:])
        claim(others == list(range(1, n + 1)), "the latents do not have turns 1..n")
    last = positions[len(positions) - c:]
    claim(set(last) <= set(masked), "the last seats do not hold unknown cells")
    if case["left_to_right"] or dials["order"] == "left_to_right":
        absent = [p for p in range(P, P + A) if p not in positions]
        claim(not absent or max(last) < min(absent), "left to right: a later cell comes first")
    if case["left_to_right"]:
        claim(not absent or max(masked) < min(absent), "left to right: latents do not follow")
        claim(sorted(masked)[:c] == sorted(last), "left to right: a latent comes before")


def check_line(case, answer):
    """Candidates and latents are random cells, drawn anew at every step."""
    B, P, A = len(case["start"]), case["P"], case["A"]
    first, second = answer["calls"]
    for seat in (-1, -2, -3):
        for i in range(P, P + A):
            count = sum(row[seat] == i for row in first["positions"])
            claim(within(count / B, 1 / A, B), "order random: some cells come first more often")
    same = sum(set(a[-3:-1]) == set(b[-3:-1]) or b[-1] in a[-3:-1]
               for a, b in zip(first["positions"], second["positions"]))
    # two of four: the same pair 1/6, or the next candidate was a latent 1/2, of which none is both
    claim(within(same / B, 2 / 3, B), "latents are not drawn anew at every step")


# --------------------------------------------------------------------------------------------------
# 5 next token with a cache, and a window of latents


def cases_5(r):
    cases = []
    for A, W in ((6, 1), (6, 2), (6, 5), (6, 6), (5, 9), (6, None)):
        cuts = [0, A - 1, r.randint(0, A - 1)]  # how many are known
        turn = [[i - cut for i in range(1, A + 1)] for cut in cuts]
        cases += [{"kind": "window", "turn": turn, "W": W, "tensor": tensor}
                  for tensor in (False, True) if not (tensor and W is None)]
    cases += [{"kind": "draw", "window": w, "A": 6, "draws": d, "seed": r.randrange(10**6)}
              for w, d in (("all", 1), ("1", 1), ("4", 1), ("11", 1), ("random", 6000))]
    for i in range(4):
        P, A, K = r.randint(1, 4), r.randint(4, 6), 3
        start = [[r.randrange(K) for _ in range(P + A)] for _ in range(4)]
        cases.append({"kind": "nats", "P": P, "A": A, "K": K, "start": start,
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
    {"window": check_window, "draw": check_draw, "nats": check_next_nats,
     "decode": check_next}[case["kind"]](case, answer)


def check_window(case, answer):
    W = math.inf if case["W"] is None else case["W"]
    for b, turn in enumerate(case["turn"]):
        turn = [0, *turn]  # behind a prompt token of rank 0
        rank = [0] * len(turn) if answer is None else [0, *answer[b]]
        right = [[k <= W or i == j for j, k in enumerate(turn)] for i, _ in enumerate(turn)]
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
    """Under either ranking each sees all before it and itself."""
    T = len(call["tokens"][0])
    rank = call["rank"]
    if T == 1:
        return
    if case["ranks"] == "causal":
        claim(sees_or_all(rank, T) == sees(list(range(1, T + 1))), "a token sees a later one")
    else:
        wanted = [i - case["P"] + 1 for i in range(T)]
        claim(rank in (wanted, [wanted]), "the rank is not that of next_token_ranks()")


def check_next_nats(case, answer):
    P, A = case["P"], case["A"]
    claim(len(answer["calls"]) == 1, "next_token_nats() needs one forward pass")
    call = answer["calls"][0]
    check_rank_of_prefix(case, call)
    for b, row in enumerate(case["start"]):
        T = len(call["tokens"][b])
        claim(T >= P + A - 1 and call["tokens"][b] == row[:T]
              and call["positions"][b] == list(range(T)), "the tokens are not fed as they are")
        right = sum(nll(case["logits"][i - 1][row[i - 1]], row[i]) for i in range(P, P + A)) / A
        claim(close(answer["nats"][b], right), "the loss is not the mean of -log p over the "
              "answer, each token predicted where its predecessor stands")


def check_next(case, answer):
    P, A, K, rows = case["P"], case["A"], case["K"], answer["tokens"]
    sizes = [P if case["use_cache"] and i == 0 else 1 if case["use_cache"] else P + i
             for i in range(A)]
    claim(len(answer["calls"]) == A, "one forward pass for each token")
    fed = 0
    for i, (call, size) in enumerate(zip(answer["calls"], sizes)):
        claim(call["cached"] == (fed if case["use_cache"] else None), "the cache is not used")
        claim(len(call["tokens"][0]) == size, "a token is fed twice, or not at all")
        for b in range(min(8, len(rows))):
            claim(call["tokens"][b] == rows[b][P + i - size:P + i], "other tokens are fed")
            claim(call["positions"][b] == list(range(P + i - size, P + i)), "wrong positions")
        check_rank_of_prefix(case, call)
        fed += size
    for b, row in enumerate(rows):
        claim(row[:P] == case["start"][b][:P] and len(row) == P + A, "the prompt is changed")
    stats = answer["stats"]
    claim(stats["nfe"] == [A] * len(rows) and stats["tokens"] == [sum(sizes)] * len(rows),
          "nfe or tokens are not what was fed")
    if case["temperature"]:
        logits = [x / case["temperature"] for x in case["logits"][P - 1][case["start"][0][P - 1]]]
        for s in range(K):
            p = math.exp(-nll(logits, s))
            claim(within(sum(row[P] == s for row in rows) / len(rows), p, len(rows)),
                  "T = 1: symbols are not drawn from the softmax")
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
        return claim(close(answer, mean[0]), "chance_level(): not the share that walking at random "
                     "along the edges solves")
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
    """Each step draws its cells one by one from what is known when the step begins."""
    q, fits = 1.0, boards
    for i in range(0, len(order), k):
        cells = order[i:i + k]
        for cell in cells:
            q *= sum(b[cell] == row[cell] for b in fits) / len(fits)
        fits = [b for b in fits if all(b[cell] == row[cell] for cell in cells)]
    return q


def entropy(boards, cells):
    seen = [tuple(b[cell] for cell in cells) for b in boards]
    shares = [seen.count(s) / len(seen) for s in set(seen)]
    return -sum(p * math.log(p) for p in shares)


# --------------------------------------------------------------------------------------------------
# 9 an objective of your own


def cases_9(r):
    P, A, K = 2, 5, 3
    turns = [(random_turn(r, A, 3), A), ([-1, 0, 1, 2, 3], 2)]
    return [{"P": P, "A": A, "K": K, "seed": r.randrange(10**6), "turns": turns,
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
    """What is scored is not looked at."""
    P, K, (tokens,), (turn,) = case["P"], case["K"], seen["tokens"], seen["turn"]
    claim(math.isfinite(seen["nats"][0]), "the loss is not finite: is anything scored?")
    if not next_token:
        claim(all(tokens[P + i] == K for i, t in enumerate(turn) if t > 0) and max(turn) > 0,
              "a hidden symbol is fed to the model")
        return
    matrix, T = sees_or_all(seen["rank"], len(tokens)), len(tokens)
    reach = [set(k for k in range(T) if matrix[q][k]) for q in range(T)]
    for _ in range(T):
        reach = [set().union(*(reach[k] for k in ks)) for ks in reach]
    claim(all(max(reach[q]) <= q for q in range(P - 1, T)), "a token that is predicted is seen")


def signatures(case, next_token):
    """The five objectives, on the two turns of the case: who sees whom."""
    P, A = case["P"], case["A"]
    if next_token:
        causal = sees(list(range(1, P + A)))
        return [[causal, causal]]
    five = []
    for name in ("mdm", "sidm", "scdm", "mtp"):
        both = []
        for turn, W in case["turns"]:
            rank = [{"mdm": 0, "sidm": min(max(t, 0), 1), "scdm": max(t, 0),
                     "mtp": math.inf if t > W else 0}[name] for t in turn]
            both.append(sees([0] * P + rank))
        five.append(both)
    return five
