"""Results of studies/compare.py: which samples were solved, as text, and paired differences."""
BITS = 4  # of solved samples in a hexadecimal digit
# in a row of a decoder: sampling parameters of sample.py's own loop, which nobody chose
NOT_CHOSEN = {"latents": "-", "order": "-", "tokens_per_step": "-"}


def to_hex(solved):
    """bool (B,) -> hexadecimal text, the first sample first."""
    bits = "".join(map(str, solved.int().tolist()))
    bits += "0" * (-len(bits) % BITS)
    return "".join(f"{int(bits[i:i + BITS], 2):x}" for i in range(0, len(bits), BITS))


def from_hex(text, num):
    """-> list of num bool."""
    return [b == "1" for b in "".join(f"{int(c, 16):0{BITS}b}" for c in text)][:num]


def paired_difference(a, b):
    """Solved by a and not by b, and the reverse -> difference of rates and its 95 % half-width.

    a, b: lists of bool of the same puzzles. The interval is Wald's for paired proportions.
    """
    n = len(a)
    gained = sum(x and not y for x, y in zip(a, b, strict=True))
    lost = sum(y and not x for x, y in zip(a, b, strict=True))
    d = (gained - lost) / n
    return d, 1.96 * max(0.0, (gained + lost) / n - d * d) ** 0.5 / n ** 0.5


def wall_seconds(result):
    """The seconds of a result with its training, also where that was done earlier: then with those
    of the training log where nothing else is known."""
    training = result["training"] or {}
    earlier = result.get("source", "").startswith("trained earlier")
    of_training = training.get("wall_seconds", training.get("seconds", 0)) if earlier else 0
    return result["wall_seconds"] + of_training
