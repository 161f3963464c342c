"""results/ read, checked, and added up over seeds; tables of it in Markdown.

    n latents   W window   k of N solved, with the 95 % Wilson interval   sd: over seeds (N - 1)

A RESULT is one json file: one training (or one shipped checkpoint), one seed, a row for each way
of decoding. `found` is {preset: [result, ...]}; `order`, {preset: [name of a run, ...]}, says
which are shown and in which order. A POOLED ROW is a dict: one run and one way of decoding, the
seeds added up; its keys are the columns of results/all.csv. pages.py writes them.
Files are input: when read they are checked, and their strings made harmless.
"""
import json
import math
from pathlib import Path
from statistics import mean, median, stdev

from errors import BadInput, printable
from metrics import wilson
from plumbing.decoder_tables import from_hex, paired_difference, wall_seconds

# --------------------------------------------------------------------------------------------------
# Reading: what is not as reproduce.py and bench.py write it is refused, with its file and field

MOST = 10**15  # no count, size or time is larger


def number(low, *kinds):
    """-> a predicate: a number of these kinds in low..MOST."""
    return lambda value: type(value) in kinds and low <= value <= MOST  # NaN is not


index, count = number(0, int), number(1, int)
amount, signed = number(0, int, float), number(-MOST, int, float)


def index_or_word(value):
    return value in ("all", "-") or index(value)


def flat(value):
    """A row of a benchmark, or the parameters of a decoder: {name: word or number}."""
    return isinstance(value, dict) and all(
        v is None or isinstance(v, (str, bool)) or signed(v) for v in value.values())


def counts_by_distance(value):
    return isinstance(value, dict) and all(
        k.isdecimal() and isinstance(v, list) and len(v) == 2 and all(map(index, v))
        and v[0] <= v[1] for k, v in value.items())


def hexadecimal(value):
    return isinstance(value, str) and all(c in "0123456789abcdef" for c in value)


def or_none(schema):
    return (schema,)


# A schema is a type, a predicate, or_none(schema), [schema of each] (one at least), or
# {field: schema}, where "field?" may be missing. Only what is shown is asked for.
ROW = {"objective": str, "trained_window": or_none(str), "latents": index_or_word, "num": count,
       "solved": index, "solved_rate": amount, "nfe": amount, "tokens": amount, "seconds": amount,
       "order?": str, "candidates?": index_or_word, "tokens_per_step?": index_or_word, "test?": str,
       "restarts?": index, "by_distance?": counts_by_distance}
OF_DECODER = {"decoder": str, "decoder_params": flat, "restarts": index, "test": str,
              "undone": amount, "order_tau": signed, "once_right": or_none(index),
              "solved_bits": hexadecimal}
SCHEMAS = {
    "result": {
        "preset": str, "name": str, "seed": index, "params": count, "wall_seconds": amount,
        "training": or_none({"steps": count, "seconds": amount, "peak_memory_gb": or_none(amount),
                             "wall_seconds?": amount}),
        "machine": {"device": str, "threads": count, "torch": str},
        "config": {"task": str, "board_size": index, "arms": index, "path_len": index,
                   "minimal_fraction?": amount},
        "likelihood?": or_none({"nats_per_cell": amount, "floor": amount, "exact": bool}),
        "rows": [ROW]},
    "blocks": {"size": count, "order": str, "solved": index, "num": count, "tokens": amount,
               "seconds": amount, "held_out_nats": amount},
    "bench": {"command": str, "device": str, "threads": count, "torch": str, "width": count,
              "depth": count, "repeats": count, "exponents?": flat, "train?": [flat],
              "budget?": [flat], "sample?": [flat], "length?": [flat], "size?": [flat],
              "world?": [flat]},
}


def refuse(file, field, why):
    raise BadInput(f"{printable(file, 200)}: field {printable(field)} {why}; "
                   "make the file again, or move it away")


def check(value, schema, file, field=""):
    """Raises BadInput, naming file and field, for a value that is not as the schema says."""
    if isinstance(schema, tuple):
        if value is None:
            return
        schema = schema[0]
    if isinstance(schema, (dict, list)):
        right = isinstance(value, type(schema)) and value not in ([], {})
    elif isinstance(schema, type):
        right = isinstance(value, schema)
    else:
        right = schema(value)
    if not right:
        refuse(file, field, f"is {printable(repr(value))}, which cannot be")
    if isinstance(schema, list):
        for i, part in enumerate(value):
            check(part, schema[0], file, f"{field}[{i}]")
    if isinstance(schema, dict):
        for name, part in schema.items():
            inside = f"{field}.{name}".strip(".?")
            if name.rstrip("?") in value:
                check(value[name.rstrip("?")], part, file, inside)
            elif not name.endswith("?"):
                refuse(file, inside, "is missing")


def harmless(value):
    """A value from json, control characters in its strings escaped: they are printed later."""
    if isinstance(value, dict):
        return {printable(k): harmless(v) for k, v in value.items()}
    if isinstance(value, list):
        return [harmless(v) for v in value]
    return printable(value, 1000) if isinstance(value, str) else value


def read_json(file, schema, lines=False):
    """-> what the file holds, checked; with lines a list, one a line. Raises BadInput."""
    shown = printable(file, 200)
    try:
        text = Path(file).read_text(encoding="utf-8")
        parts = [harmless(json.loads(p)) for p in (text.splitlines() if lines else [text])]
    except OSError as e:
        raise BadInput(f"cannot read {shown}: {e.strerror}") from None
    except (ValueError, RecursionError):
        raise BadInput(f"{shown} is not JSON: cut off or damaged; "
                       "make it again, or move it away") from None
    for i, part in enumerate(parts):
        check(part, SCHEMAS[schema], file, f"line {i + 1}" if lines else "")
    return parts if lines else parts[0]


def read_result(file):
    """One json file of reproduce.py -> a result. Raises BadInput, naming file and field."""
    file = Path(file)
    result = read_json(file, "result")
    named = f"{result['preset']}/{result['name']}-seed{result['seed']}.json"
    if named != f"{file.parent.name}/{file.name}":
        refuse(file, "preset, name or seed", f"says {printable(named)}, unlike the file's name")
    for i, row in enumerate(result["rows"]):
        if "decoder" in row:
            check(row, OF_DECODER, file, f"rows[{i}]")
        if row["solved"] > row["num"]:
            refuse(file, f"rows[{i}].solved", f"is {row['solved']}, more than num {row['num']}")
        if not math.isclose(row["solved_rate"], row["solved"] / row["num"], abs_tol=1e-9):
            refuse(file, f"rows[{i}].solved_rate", f"is {row['solved_rate']}, not solved / num")
    return dict(result, log=file.with_suffix(".csv"))


def read_bench(file):
    """One json file of bench.py -> its report. Raises BadInput, naming file and field."""
    return read_json(file, "bench")


def load_results(folder, order):
    """The results folder -> found; other files in it are left alone. Raises BadInput."""
    found = {}
    for preset, names in order.items():
        files = sorted((Path(folder) / preset).glob("*-seed*.json"))
        files = [file for file in files if file.name.rpartition("-seed")[0] in names]
        results = [read_result(file) for file in files]
        if results:
            found[preset] = sorted(results, key=lambda d: (names.index(d["name"]), d["seed"]))
    if not found:
        raise BadInput(f"no results in {printable(folder, 200)}; "
                       "make some with: python reproduce.py --preset demo")
    return found


# --------------------------------------------------------------------------------------------------
# Pooled rows

SETTING = ("objective", "trained_window", "latents", "test", "order", "candidates",
           "tokens_per_step", "restarts", "decoder", "decoder_params")
PLAIN = {"decoder": "plain", "decoder_params": "k=1", "restarts": 0}  # compared with all others
COLUMNS = ("preset", "run", "task", *SETTING, "distance", "size", "seeds", "solved", "num",
           "percent", "low", "high", "sd", "per_seed", "nfe", "tokens", "seconds",
           "nats_per_cell", "floor", "gain", "gain_half_width", "undone", "lost", "order_tau",
           "params", "train_seconds", "steps", "memory_gb", "minutes", "machine")


def describe(config):
    if config["task"].startswith("sudoku"):
        return f"{config['task']} {config['board_size']}x{config['board_size']}"
    if config["task"] == "star":
        return f"star G({config['arms']},{config['path_len']})"
    return config["task"]


def setting_of(row):
    """-> dict: how a row was decoded."""
    setting = {name: None if row.get(name) == "-" else row.get(name) for name in SETTING}
    if "decoder" in row:  # it takes the place of these
        setting.update(latents=None, order=None, tokens_per_step=None)
    if setting["test"]:
        setting["test"] = setting["test"].removesuffix(".txt")
    if setting["decoder_params"] is not None:
        setting["decoder_params"] = ", ".join(f"{k}={v}" for k, v in row["decoder_params"].items())
    return setting


def pool_seeds(results):
    """The results of one preset -> pooled rows. A seed that was decoded in other ways makes rows of
    its own: counts are never mixed. Planning has a row for each distance as well."""
    groups, rows = {}, []
    for result in results:
        for row in result["rows"]:
            setting = {"run": result["name"], **setting_of(row)}
            groups.setdefault(tuple(setting.values()), (setting, []))[1].append((result, row))
    for setting, members in groups.values():
        row = pool(setting, members)
        if setting["decoder"]:
            _, plain = groups.get(tuple({**setting, **PLAIN}.values()), ({}, []))
            row.update(gain_over(plain, members))
        rows += [row, *by_distance(row, [r.get("by_distance", {}) for _, r in members])]
    return rows


def pool(setting, members):
    """members: (result, row) of each seed -> a pooled row."""
    result, rows = members[0][0], [row for _, row in members]
    trained = [d["training"] for d, _ in members if d["training"]]
    likelihoods = [d["likelihood"] for d, _ in members if d.get("likelihood")]
    pooled = {
        "preset": result["preset"], "task": describe(result["config"]), **setting,
        **sum_up([(r["solved"], r["num"]) for r in rows]),
        **{name: mean([r[name] for r in rows])
           for name in ("nfe", "tokens", "seconds", "undone", "order_tau") if name in rows[0]},
        "minimal_fraction": result["config"].get("minimal_fraction"), "params": result["params"],
        "train_seconds": mean([t["seconds"] for t in trained]) if trained else None,
        "steps": " ".join(str(t["steps"]) for t in trained),
        "num_steps": mean([t["steps"] for t in trained]) if trained else None,
        "memory_gb": max((t["peak_memory_gb"] or 0 for t in trained), default=0) or None,
        "minutes": median([wall_seconds(d) / 60 for d, _ in members]),
        "machine": result["machine"]["device"], "logs": [d.get("log") for d, _ in members]}
    if likelihoods:
        pooled.update(nats_per_cell=mean([d["nats_per_cell"] for d in likelihoods]),
                      floor=likelihoods[0]["floor"])
    if rows[0].get("once_right") is not None:
        pooled["lost"] = sum(r["once_right"] for r in rows) / pooled["num"]
    return pooled


def by_distance(row, counts):
    """counts: {distance: (solved, num)} of each seed -> a row for each distance, and one for all
    from 2 on, where there is something to plan."""
    distances = sorted({int(k) for of_seed in counts for k in of_seed})
    groups = {**{str(d): [d] for d in distances}, "2+": [d for d in distances if d >= 2]}
    for distance, those in groups.items():
        sums = [[sum(c.get(str(d), (0, 0))[i] for d in those) for i in (0, 1)] for c in counts]
        if all(n for _, n in sums):
            yield {**row, **sum_up(sums), "distance": distance}


def gain_over(plain, members):
    """(result, row) of each seed, twice -> the paired difference in points, over the same seeds and
    puzzles; nothing where they share none."""
    base = {(d["seed"], r["num"]): r["solved_bits"] for d, r in plain}
    shared = [(r["solved_bits"], base[d["seed"], r["num"]], r["num"]) for d, r in members
              if (d["seed"], r["num"]) in base]
    if not shared:
        return {}
    mine, its = ([bit for part in shared for bit in from_hex(part[i], part[2])] for i in (0, 1))
    gain, half = paired_difference(mine, its)
    return {"gain": 100 * gain, "gain_half_width": 100 * half}


def sum_up(counts):
    """[(solved, num) of each seed] -> what a pooled row says of them."""
    solved, num = map(sum, zip(*counts))
    rates = [k / n for k, n in counts]
    low, high = wilson(solved, num)
    return {"seeds": len(counts), "solved": solved, "num": num, "rates": rates,
            "percent": 100 * solved / num, "low": 100 * low, "high": 100 * high,
            "sd": 100 * stdev(rates) if len(rates) > 1 else None,
            "per_seed": " ".join(f"{100 * rate:.1f}" for rate in rates)}


def of_preset(preset, results, names):
    """Command and cost of a whole preset -> a row. names: all its runs; some lack results."""
    walls = {}
    for d in results:
        walls.setdefault(d["name"], []).append(wall_seconds(d))
    seeds = max(map(len, walls.values()))
    command = f"python reproduce.py --preset {preset}"
    command += f" --only {','.join(walls)}" if len(walls) < len(names) else ""
    command += f" --seeds {seeds}" if seeds > 1 else ""
    if any(row.get("test", "").endswith(".txt") for d in results for row in d["rows"]):
        command += " --puzzles DIR"
    machines = dict.fromkeys(d["machine"]["device"] for d in results)
    return {"preset": preset, "run": "preset", "command": command, "seeds": seeds,
            "minutes": sum(map(median, walls.values())) / 60, "machine": " and ".join(machines)}


# --------------------------------------------------------------------------------------------------
# Text

COMPARED = (  # what latents change, in words; two sides: objective, trained window, latents
    ("diffusion: independent (sidm) or joint (mdm)", ("sidm", None, 0), ("mdm", None, "all")),
    ("one scdm model at n = 0 or n = all", ("scdm", None, 0), ("scdm", None, "all")),
    ("one bcdm model at n = 0 or n = all", ("bcdm", None, 0), ("bcdm", None, "all")),
    ("mtp without or with latents", ("mtp-no-latents", None, 0), ("mtp", "all", "all")),
    ("mtp trained with W = 1 or W = all", ("mtp", "1", 0), ("mtp", "all", "all")))
BENCH_PARTS = {  # of a bench report: a list of rows each -> title
    "train": "Training step", "budget": "Where the mdm step goes", "sample": "Sampling",
    "length": "Cost against length (mdm)", "size": "Cost against parameters (mdm)",
    "world": "Several processes (torchrun, DistributedDataParallel), each with a GPU or a part of "
             "the CPU; mean over the steps"}


def show(value):
    """A number or word for a table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if isinstance(value, (int, float)) else value


def percent(value, digits=1):
    """With one digit more where rounding would hide that something failed."""
    text = f"{value:.{digits}f}"
    return percent(value, digits + 1) if value < 100 and float(text) == 100 else text


def mean_and_sd(row):
    text = percent(row["percent"])
    digits = len(text.partition(".")[2])
    return text + ("" if row["sd"] is None else f" ± {row['sd']:.{digits}f}")


def markdown(columns, lines):
    return "\n".join(f"| {' | '.join(map(str, line))} |"
                     for line in (columns, ["---"] * len(columns), *lines))


def table(found, order):
    """Each preset: its command and cost, and a line for each pooled row."""
    parts = []
    for preset, results in found.items():
        rows, whole = pool_seeds(results), of_preset(preset, results, order[preset])
        more = [name for name in (*SETTING[1:], "distance") if name != "latents"
                and len({row.get(name) for row in rows}) > 1]
        lines = [(r["run"], r["task"], show(r["latents"]), *(show(r.get(name)) for name in more),
                  mean_and_sd(r), f"{r['solved']}/{r['num']}", f"{r['low']:.1f}-{r['high']:.1f}",
                  f"{r['nfe']:.4g}", f"{r['tokens']:.0f}", f"{r['seconds']:.2f}") for r in rows]
        parts += [f"**{preset}**: `{whole['command']}` ({whole['machine']}; {whole['seeds']} "
                  f"seed{'s' * (whole['seeds'] > 1)}, {whole['minutes']:.1f} minutes each)",
                  markdown(("run", "task", "latents", *(m.replace("_", " ") for m in more),
                            "solved %", "counts", "95 % interval", "NFE", "tokens", "seconds"),
                           lines)]
    return "\n\n".join(parts)


def findings(results):
    """What latents change in the results of one preset, a sentence each -> list of str."""
    rows, said = pool_seeds(results), []
    for where in dict.fromkeys((r["task"], r["test"]) for r in rows):
        sides = {}  # the first way of decoding of each
        for r in (r for r in rows if (r["task"], r["test"]) == where and "distance" not in r):
            sides.setdefault((r["objective"], r["trained_window"], r["latents"]), r)
        for what, without, with_all in COMPARED:
            a, b = sides.get(without), sides.get(with_all)
            if a and b and a["candidates"] == b["candidates"]:
                said.append(f"{', '.join(filter(None, where))}: {what}: {a['percent']:.1f} % -> "
                            f"{b['percent']:.1f} % ({b['percent'] - a['percent']:+.1f} points)")
    return said


def bench_markdown(report):
    """A report of bench.py as tables."""
    medians = "" if "world" in report else f", medians of {report['repeats']}"
    text = [f"**Speed**: `{report['command']}` ({report['device']}, {report['threads']} threads, "
            f"torch {report['torch']}; training at {report['width']} x {report['depth']}{medians})"]
    for part, title in BENCH_PARTS.items():
        rows = report.get(part, [])
        columns = list(dict.fromkeys(k for row in rows for k in row if row[k] is not None))
        if rows:
            lines = [[show(row.get(name)) for name in columns] for row in rows]
            titles = [name.replace("_", " ") for name in columns]
            text += ["", f"{title}:", "", markdown(titles, lines)]
    if "exponents" in report:
        text += ["", "  \n".join(f"{name}: exponent {value:.2f}"
                                 for name, value in report["exponents"].items())]
    return "\n".join(text)


