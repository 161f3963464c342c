"""results/ as text: tables, and the pages that hold them. Nothing here decodes; figures.py draws.

    n latents   W window   k of n solved, with the 95 % Wilson interval

A RESULT is one json file: one training (or one shipped checkpoint), one seed, a row for each dial.
`found` is {preset: [result, ...]}; `order`, {preset: [name of a run, ...]}, says what is shown and
in which order. Files are input: when read they are checked, and their strings made harmless.
"""
import json
import math
import textwrap
from pathlib import Path

from config import is_window
from data import TASKS
from data.puzzles import BOX, peers
from decoders import compare
from metrics import wilson
from plumbing.checkpoint import write_text
from plumbing.cli import BadInput, printable

# --------------------------------------------------------------------------------------------------
# Reading: what is not as reproduce.py and bench.py write it is refused, with its file and its field

MOST = 10**15  # no count, size or time is larger


def is_text(value):
    return isinstance(value, str)


def is_index(value):
    return type(value) is int and 0 <= value <= MOST


def is_count(value):
    return is_index(value) and value > 0


def is_amount(value):
    return type(value) in (int, float) and 0 <= value <= MOST  # NaN is not


def is_memory(value):
    return value is None or is_amount(value)


def is_cell(value):
    return value is None or isinstance(value, (str, bool)) or is_amount(value)


def is_exponent(value):
    return type(value) in (int, float) and abs(value) <= MOST


def is_trained_window(value):
    return value is None or is_text(value) and is_window(value)


def is_index_or_all(value):
    return value == "all" or is_index(value)


def is_task(value):
    return is_text(value) and value in TASKS


def is_object(value):
    return isinstance(value, dict)


def is_object_or_none(value):
    return value is None or is_object(value)


def is_knobs(value):
    return is_object(value) and all(is_text(v) or is_amount(v) for v in value.values())


def is_lost(value):
    return value is None or is_index(value)


def is_bits(value):
    return is_text(value) and all(c in "0123456789abcdef" for c in value)


def is_rows(value):
    return isinstance(value, list) and value != [] and all(is_object(row) and row for row in value)


# field: what it must be. Only what is shown is asked for, so that older files stay readable.
RESULT = {"preset": is_text, "name": is_text, "seed": is_index, "params": is_count,
          "wall_seconds": is_amount, "training": is_object_or_none, "machine": is_object,
          "config": is_object, "rows": is_rows}
TRAINING = {"steps": is_count, "seconds": is_amount, "peak_memory_gb": is_memory}
MACHINE = {"device": is_text, "threads": is_count, "torch": is_text}
CONFIG = {"task": is_task, "board_size": is_index, "arms": is_index, "path_len": is_index}
LIKELIHOOD = {"nats_per_cell": is_amount, "standard_error": is_amount, "floor": is_amount,
              "exact": lambda value: isinstance(value, bool)}
ROW = {"objective": is_text, "trained_window": is_trained_window, "latents": is_index_or_all,
       "num": is_count, "solved": is_index, "solved_rate": is_amount, "nfe": is_amount,
       "tokens": is_amount, "seconds": is_amount}
DIALS = {"order": is_text, "candidates": is_index_or_all, "tokens_per_step": is_count,
         "test": is_text, "restarts": is_index}  # of a row: each is asked for where it is
ROW_OF_DECODER = {"decoder": is_text, "knobs": is_knobs, "restarts": is_index, "test": is_text,
                  "undone": is_amount, "order_tau": is_exponent, "once_right": is_lost,
                  "solved_bits": is_bits}
BLOCKS = {"size": is_count, "order": lambda value: value in ("random", "left_to_right"),
          "solved": is_index, "num": is_count,
          "interval": lambda value: isinstance(value, list) and len(value) == 2
          and all(map(is_amount, value)), "tokens": is_amount, "held_out_nats": is_amount}
BENCH = {"command": is_text, "device": is_text, "threads": is_count, "torch": is_text,
         "width": is_count, "depth": is_count, "repeats": is_count}
BENCH_PARTS = {  # of a bench report: a list of rows each -> title
    "train": "Training step", "budget": "Where the mdm step goes", "sample": "Sampling",
    "length": "Cost against length (mdm)", "size": "Cost against parameters (mdm)",
    "processes": "Several processes (torchrun, DistributedDataParallel), a GPU or a share of the "
                 "CPU each; mean over the steps"}


def refuse(file, field, why):
    raise BadInput(f"{printable(file, 200)}: field {printable(field)} {why}; "
                   "make the file again, or move it away")


def check_fields(part, fields, file, where=""):
    """Raises BadInput for the first of the fields that `part` lacks, or that is impossible."""
    for name, is_right in fields.items():
        if name not in part:
            refuse(file, where + name, "is missing")
        if not is_right(part[name]):
            refuse(file, where + name, f"is {printable(repr(part[name]))}, which cannot be")


def harmless(value):
    """A value from json, control characters in its strings escaped: they are printed later."""
    if isinstance(value, dict):
        return {printable(k): harmless(v) for k, v in value.items()}
    if isinstance(value, list):
        return [harmless(v) for v in value]
    return printable(value, 1000) if isinstance(value, str) else value


def read_json(file, lines=False):
    """-> a dict; with lines a list of them, one a line. Raises BadInput."""
    shown = printable(file, 200)
    try:
        text = Path(file).read_text(encoding="utf-8")
        parts = [harmless(json.loads(p)) for p in (text.splitlines() if lines else [text])]
    except OSError as e:
        raise BadInput(f"cannot read {shown}: {e.strerror}") from None
    except (ValueError, RecursionError):
        raise BadInput(f"{shown} is not JSON: cut off or damaged; "
                       "make it again, or move it away") from None
    if not all(isinstance(part, dict) for part in parts):
        raise BadInput(f"{shown} does not hold a JSON object; make it again, or move it away")
    return parts if lines else parts[0]


def read_result(file):
    """One json file of reproduce.py -> a result. Raises BadInput, naming file and field."""
    file = Path(file)
    result = read_json(file)
    check_fields(result, RESULT, file)
    check_fields(result["machine"], MACHINE, file, "machine.")
    check_fields(result["config"], CONFIG, file, "config.")
    if result["training"] is not None:
        check_fields(result["training"], TRAINING, file, "training.")
    if result.get("likelihood") is not None:
        check_fields({"likelihood": result["likelihood"]}, {"likelihood": is_object}, file)
        check_fields(result["likelihood"], LIKELIHOOD, file, "likelihood.")
    if result["preset"] != file.parent.name:
        refuse(file, "preset", f"is {result['preset']!r}, unlike the folder")
    if file.name != f"{result['name']}-seed{result['seed']}.json":
        refuse(file, "name", f"is {result['name']!r}, and seed {result['seed']}, unlike the file's")
    for i, row in enumerate(result["rows"]):
        check_row(row, file, f"rows[{i}].")
    return dict(result, log=file.with_suffix(".csv"))


def check_row(row, file, where):
    check_fields(row, ROW, file, where)
    check_fields(row, {name: right for name, right in DIALS.items() if name in row}, file, where)
    if "decoder" in row:
        check_fields(row, ROW_OF_DECODER, file, where)
    if row["solved"] > row["num"]:
        refuse(file, where + "solved", f"is {row['solved']}, more than num {row['num']}")
    if not math.isclose(row["solved_rate"], row["solved"] / row["num"], abs_tol=1e-9):
        refuse(file, where + "solved_rate", f"is {row['solved_rate']}, not solved / num")
    by_distance = row.get("by_distance", {})
    if not isinstance(by_distance, dict):
        refuse(file, where + "by_distance", "is not an object")
    for distance, counts in by_distance.items():
        pair = isinstance(counts, list) and len(counts) == 2 and all(map(is_index, counts))
        if not distance.isdecimal() or not pair or counts[0] > counts[1]:
            refuse(file, where + "by_distance", "is not {distance: [solved, num]}")


def read_bench(file):
    """One json file of bench.py -> its report. Raises BadInput, naming file and field."""
    report = read_json(file)
    check_fields(report, BENCH, file)
    parts = [part for part in BENCH_PARTS if part in report]
    check_fields(report, dict.fromkeys(parts, is_rows), file)
    for part in parts:
        columns = dict.fromkeys(report[part][0], is_cell)
        for i, row in enumerate(report[part]):
            check_fields(row, columns, file, f"{part}[{i}].")
    check_fields({"exponents": {}, **report}, {"exponents": is_object}, file)
    exponents = report.get("exponents", {})
    check_fields(exponents, dict.fromkeys(exponents, is_exponent), file, "exponents.")
    return report


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
# Numbers: seeds added up, and what they say


def describe(config):
    if config["task"].startswith("sudoku"):
        return f"{config['task']} {config['board_size']}x{config['board_size']}"
    if config["task"] == "star":
        return f"star G({config['arms']},{config['path_len']})"
    return config["task"]


def pooled(results):
    """The results of one preset -> one dict for each run and dial, seeds added up."""
    groups = {}
    for result in results:
        for i, row in enumerate(result["rows"]):
            key = (result["name"], i, row["latents"], row.get("test"), row.get("order"),
                   row.get("candidates"))
            groups.setdefault(key, []).append((result, row))
    return [pool(name, members) for (name, *_), members in groups.items()]


def pool(name, members):
    """members: (result, row) of each seed -> dict."""
    result, row = members[0]
    rows, trained = [r for _, r in members], [d["training"] for d, _ in members if d["training"]]
    solved, num = sum(r["solved"] for r in rows), sum(r["num"] for r in rows)
    by_distance = {}
    for r in rows:
        for distance, counts in r.get("by_distance", {}).items():
            before = by_distance.get(distance, (0, 0))
            by_distance[distance] = (before[0] + counts[0], before[1] + counts[1])
    return {
        "name": name, "objective": row["objective"], "window": row["trained_window"],
        "latents": row["latents"], "task": describe(result["config"]),
        "test": row.get("test"), "order": row.get("order"), "per_step": row.get("tokens_per_step"),
        "restarts": row.get("restarts", 0), "candidates": row.get("candidates"),
        "likelihoods": [d["likelihood"] for d, _ in members if d.get("likelihood")],
        "machine": result["machine"]["device"], "seeds": len(members),
        "solved": solved, "num": num, "rate": solved / num, "interval": wilson(solved, num),
        "rates": [r["solved_rate"] for r in rows], "by_distance": by_distance,
        "nfe": mean(rows, "nfe"), "tokens": mean(rows, "tokens"),
        "seconds": sum(r["seconds"] for r in rows) / len(rows), "params": result["params"],
        "steps": " ".join(str(t["steps"]) for t in trained),
        "train_seconds": [t["seconds"] for t in trained],
        "memory": max((t["peak_memory_gb"] or 0 for t in trained), default=0)}


def mean(rows, field):
    """Over seeds, which differ where puzzles are solved again; a whole number stays one."""
    value = round(sum(r[field] for r in rows) / len(rows), 2)
    return int(value) if value == int(value) else value


# What latents change, at equal training seconds. A side is (objective, trained window, latents).
JOINT = ("diffusion: independent (sidm) or joint (mdm)", ("sidm", None, 0), ("mdm", None, "all"))
DIAL = ("diffusion: one scdm model at n = 0 or n = all", ("scdm", None, 0), ("scdm", None, "all"))
WINDOW = ("autoregressive: mtp trained with W = 1 or W = all",
          ("mtp", "1", 0), ("mtp", "all", "all"))


def gaps(rows):
    """-> [(task, what is compared, row without latents, row with all of them)]."""
    pairs, tasks = [], {}
    for r in rows:
        task = r["task"] + (f", {r['test']}" if r["test"] else "")
        side = (r["objective"], r["window"], r["latents"])
        tasks.setdefault(task, {}).setdefault(side, r)  # the first order of decoding of each
    for task, sides in tasks.items():
        for what, without, with_all in (JOINT, DIAL, WINDOW):
            a, b = sides.get(without), sides.get(with_all)
            if a and b and a["candidates"] == b["candidates"]:
                pairs.append((task, what, a, b))
    return pairs


def show_window(latents):
    return "W = all" if latents == "all" else f"W = {latents + 1}"


def percent(share):
    return f"{100 * share:.1f} %"


def findings(results):
    """What the results of one preset say, in a sentence each -> list of str."""
    rows, said = pooled(results), []
    for task, what, a, b in gaps(rows):
        said.append(f"{task}: {what}: {percent(a['rate'])} -> {percent(b['rate'])} "
                    f"({100 * (b['rate'] - a['rate']):+.1f} points)")
    dials = {}
    for r in rows:
        if r["objective"] == "scdm":
            dials.setdefault(r["test"], []).append(
                f"n = {r['latents']}: {percent(r['rate'])} in {r['seconds']:.2f} s")
    for test, dial in dials.items():
        if len(dial) > 2:
            said.append(f"the dial{f', {test}' if test else ''}: " + ", ".join(dial))
    special = {r["latents"]: r for r in rows if r["window"] not in (None, "random")}
    for r in rows:
        if r["window"] == "random" and r["latents"] in special:
            a, b = special[r["latents"]]["rate"], r["rate"]
            said.append(f"{show_window(r['latents'])}: a model of its own {percent(a)}, "
                        f"the one for all windows {percent(b)} ({100 * (b - a):+.1f} points)")
    return said


# --------------------------------------------------------------------------------------------------
# Tables in Markdown


def header(columns):
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]


def per_seed(r):
    return " ".join(f"{100 * rate:.0f}" for rate in r["rates"])


FRONT = (  # the rows of the README's first page: preset, task, what is compared, in words
    ("sudoku9-gen", "sudoku-gen 9x9", JOINT,
     "9x9 boards after 2 minutes: diffusion without latents (`sidm`) or with all (`mdm`)"),
    ("sudoku9-gen", "sudoku-gen 9x9", DIAL,
     "one diffusion model (`scdm`): its dial at n = 0 or n = all"),
    ("sudoku9-gen", "sudoku-gen 9x9", WINDOW,
     "left to right (`mtp`): W = 1 (scores fewer cells, see `ar` in the figure) or W = all"),
    ("star", "star G(5,5)", WINDOW, "the same on star graphs G(5,5)"),
    ("sudoku9", "sudoku 9x9, radcliffe_mixed_2500.txt", JOINT,
     "diffusion on mixed 9x9 puzzles, surest cell first"),
)


def rows(found):
    """The README's rows: solved %, mean over seeds, and lowest to highest seed."""
    text = header(("without latents", "with all", "what is compared"))

    def share(r):
        mean, low, high = sum(r["rates"]) / r["seeds"], min(r["rates"]), max(r["rates"])
        digits = 1 if low > 0.99 else 0  # in whole percents 99.9 would look like no mistakes at all
        seeds = f" ({100 * low:.{digits}f}-{100 * high:.{digits}f})" if r["seeds"] > 1 else ""
        return percent(mean) + seeds

    for preset, task, (compared, *_), words in FRONT:
        for of_task, what, a, b in gaps(pooled(found.get(preset, []))):
            if (of_task, what) == (task, compared):
                counts = sorted({a["seeds"], b["seeds"]})
                seeds = " or ".join(map(str, counts)) + (" seeds" if counts[-1] > 1 else " seed")
                text.append(f"| {share(a)} | {share(b)} | {words}; `{preset}`, {seeds} |")
    return "\n".join(text)


def solved_cell(r):
    low, high = r["interval"]
    seeds = f"; seeds {per_seed(r)}" if r["seeds"] > 1 else ""
    return f"{100 * r['rate']:.1f} ({100 * low:.1f}-{100 * high:.1f}{seeds})"


def summary(found):
    """One line per comparison. Puzzles have a table of their own: puzzles()."""
    text = header(("task", "what is compared", "no latents, solved %", "all latents, solved %",
                   "seeds", "preset"))
    for preset, results in found.items():
        for task, what, a, b in gaps([r for r in pooled(results) if not r["test"]]):
            seeds = " / ".join(str(n) for n in dict.fromkeys((a["seeds"], b["seeds"])))
            cells = (task, what, solved_cell(a), solved_cell(b), seeds, f"`{preset}`")
            text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def puzzles(found):
    """One line per run, order, candidates and latents on 9x9 puzzles, one cell a pass and no
    restarts: solved % of each test set, seeds added up."""
    lines, tests = {}, {}
    for preset, results in found.items():
        for r in pooled(results):
            if r["test"] and r["per_step"] == 1 and r["restarts"] == 0:
                tests.setdefault(r["test"])
                how = (preset, r["name"], r["order"], r["candidates"], r["latents"])
                lines.setdefault(how, {})[r["test"]] = r
    text = header(("preset", "run", "order", "candidates", "latents",
                   *(test.removesuffix(".txt") for test in tests), "training"))
    for (preset, *how), line in lines.items():
        solved = (solved_cell(line[test]) if test in line else "-" for test in tests)
        cells = (f"`{preset}`", *how, *solved, training_cell(next(iter(line.values()))))
        text.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(text)


def several_cells(found):
    """One line per run, candidates and latents on 9x9 puzzles: solved % of two test sets by the
    cells of a pass, then by restarts. The surest first; mtp, which has one order: left to right."""
    two, lines, ways = ("own", "radcliffe_mixed_2500.txt"), {}, set()
    for preset, results in found.items():
        for r in pooled(results):
            if r["test"] in two and r["order"] in ("confidence", "left_to_right"):
                candidates = r["candidates"] if r["order"] == "confidence" else "the next"
                way = (r["restarts"], r["per_step"])
                line = lines.setdefault((preset, r["name"], candidates, r["latents"]), {})
                line.setdefault(way, {})[r["test"]] = f"{100 * r['rate']:.1f}"
                ways.add(way)
    text = header(("preset", "run", "candidates", "latents",
                   *(f"{restarts} restarts" if restarts else f"{cells} a pass"
                     for restarts, cells in sorted(ways))))
    for (preset, *how), line in lines.items():
        if len(line) > 1:
            cells = (" / ".join(line[way].get(test, "-") for test in two) if way in line else "-"
                     for way in sorted(ways))
            text.append(f"| {' | '.join((f'`{preset}`', *map(str, how), *cells))} |")
    return "\n".join(text)


def training_cell(r):
    """Seconds (mean over seeds) and the steps of each seed."""
    if not r["train_seconds"]:
        return "loaded"
    seconds = sum(r["train_seconds"]) / len(r["train_seconds"])
    return f"{seconds:.0f} s, {r['steps']} steps"


def table(found, order):
    """Every row of every preset. order: {preset: the names of all its runs}."""
    parts = []
    for preset, results in found.items():
        rows = pooled(results)
        parts += [command_line(preset, results, order[preset]), "\n".join(result_rows(rows))]
        distances = distance_rows(rows)
        if distances:
            parts += ["Solved %, with counts, by planning distance:", "\n".join(distances)]
    return "\n\n".join(parts)


def command_line(preset, results, names):
    """What stands above a table: its command, machines, seeds and minutes. names: all runs there
    are; where some have no results the command asks for the others."""
    machines = dict.fromkeys(
        f"{m['device']}, {m['threads']} threads, torch {m['torch']}"
        for m in (d["machine"] for d in results))
    walls = {}
    for d in results:
        walls.setdefault(d["name"], []).append(compare.wall_seconds(d))
    minutes = sum(sum(wall) / len(wall) for wall in walls.values()) / 60
    fewest, most = min(map(len, walls.values())), max(map(len, walls.values()))
    command = f"python reproduce.py --preset {preset}"
    if len(walls) < len(names):
        command += f" --only {','.join(walls)}"
    command += f" --seeds {most}" if most > 1 else ""
    seeds = f"{fewest} to {most}" if fewest < most else f"{most}"
    if any(row.get("test", "own") != "own" for d in results for row in d["rows"]):
        command += " --puzzles DIR"
    return (f"**{preset}**: `{command}` ({' and '.join(machines)}; {seeds} seed{'s' * (most > 1)}, "
            f"{minutes:.1f} minutes each with training, compiling and evaluation)")


def result_rows(rows):
    """rows: from pooled() -> lines."""
    by_test = any(r["test"] for r in rows)
    by_likelihood = any(r["likelihoods"] for r in rows)
    text = header(("task", "run" if by_test else "objective",
                   *("test", "order", "candidates", "per step", "restarts") * by_test,
                   "latents", "solved %", "counts", "95 % interval", "per seed %", "NFE",
                   "tokens", "seconds",
                   *("nats per cell",) * by_likelihood, "weights", "GB"))
    for r in rows:
        low, high = r["interval"]
        trained = f" (trained at W = {r['window']})" if r["window"] else ""
        weights = f"{r['params'] / 1e6:.2f}M, {training_cell(r)}"
        test = ()
        if by_test:
            test = (r["test"], r["order"], r["candidates"], r["per_step"], r["restarts"])
        nats = (likelihood_cell(r["likelihoods"]),) if by_likelihood else ()
        cells = (r["task"], r["name"] if by_test else r["objective"] + trained, *test, r["latents"],
                 f"{100 * r['rate']:.1f}", f"{r['solved']}/{r['num']}",
                 f"{100 * low:.1f}-{100 * high:.1f}", per_seed(r), r["nfe"], r["tokens"],
                 f"{r['seconds']:.2f}", *nats, weights, r["memory"] or "-")
        text.append(f"| {' | '.join(map(str, cells))} |")
    return text


def likelihood_cell(likelihoods):
    """Mean over seeds, as a bound (<=) or exactly, above the floor of uniformly random boards."""
    if not likelihoods:
        return "-"
    mean = sum(d["nats_per_cell"] for d in likelihoods) / len(likelihoods)
    sign = "" if likelihoods[0]["exact"] else "<= "
    return f"{sign}{mean:.4f} (floor {likelihoods[0]['floor']:.4f})"


def distance_rows(rows):
    """rows: from pooled() -> lines: solved by planning distance; none for other tasks."""
    distances = sorted({d for r in rows for d in r["by_distance"]}, key=int)
    if not distances:
        return []
    text = header(("objective", *distances))
    for r in rows:
        cells = [r["objective"] + (f" (W = {r['window']})" if r["window"] else "")]
        for distance in distances:
            k, n = r["by_distance"].get(distance, (0, 0))
            cells.append(f"{100 * k / n:.0f} ({k}/{n})" if n else "-")
        text.append(f"| {' | '.join(cells)} |")
    return text


def bench_markdown(report):
    """A report of bench.py as tables."""
    medians = "" if "processes" in report else f", medians of {report['repeats']}"
    text = [f"**Speed**: `{report['command']}` ({report['device']}, {report['threads']} threads, "
            f"torch {report['torch']}; training at {report['width']} x {report['depth']}{medians})"]
    for part, title in BENCH_PARTS.items():
        if part in report:
            measured = [name for name in report[part][0]
                        if any(row[name] is not None for row in report[part])]
            text += ["", f"{title}:", "", *header([name.replace("_", " ") for name in measured])]
            for row in report[part]:
                text.append(f"| {' | '.join(cell(row[name]) for name in measured)} |")
    if "exponents" in report:
        lines = [f"{name}: exponent {value:.2f}" for name, value in report["exponents"].items()]
        text += ["", "  \n".join(lines)]
    return "\n".join(text)


def cell(value):
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if isinstance(value, (int, float)) else value


# --------------------------------------------------------------------------------------------------
# One board at several moments, as plain text


def board_lines(cells, N):
    """cells: N*N digits, stored as 0..N-1, larger where unknown -> lines, and how many conflict."""
    h, w = BOX[N]
    wrong = {c for c in range(N * N)
             if cells[c] < N and any(cells[c] == cells[p] for p in peers(N)[c])}
    shown = [str(d + 1) if d < N else "." for d in cells]
    shown = [f"[{d}]" if c in wrong else f" {d} " for c, d in enumerate(shown)]
    lines = []
    for r in range(N):
        if r and r % h == 0:
            lines.append("+".join(["-" * 3 * w] * (N // w)))
        lines.append("|".join("".join(shown[c:c + w]) for c in range(r * N, r * N + N, w)))
    return lines, len(wrong)


def boards_beside(columns, moments, N):
    """columns: [(title, history, nfe, tokens)]; history: the N*N cells after each step -> text."""
    count, width = N * N, len(board_lines([N] * N * N, N)[0][0])
    text = [("", *(title for title, *_ in columns))]
    for moment in moments:
        text.append(("",))
        boards = [board_lines(history[moment - 1], N)[0] for _, history, *_ in columns]
        for i, lines in enumerate(zip(*boards)):
            text.append((f"{moment} of {count}" if i == 0 else "", *lines))
    wrong = [board_lines(history[-1], N)[1] for _, history, *_ in columns]
    text += [("",), ("", *(f"{n} cells in conflict" if n else "0 mistakes" for n in wrong)),
             ("", *(f"{nfe} forward passes" for *_, nfe, _ in columns)),
             ("", *(f"{tokens:,} tokens" for *_, tokens in columns))]
    lines = [f"{line[0]:9}" + "".join(f"{part:{width + 5}}" for part in line[1:]) for line in text]
    return "\n".join(line.rstrip() for line in lines)


def board(found, columns, moments, N, seed):
    """The README's board, without and with latents, and how often either succeeds -> Markdown."""
    words = ("The same model (`scdm`), the same order of cells, the same random numbers. "
             "[5]: a digit that stands twice in its row, column or box. "
             f"Seed {seed} is an example, the first at which the two differ")
    dial = {r["latents"]: r for r in pooled(found.get("demo", [])) if r["objective"] == "scdm"}
    if {0, "all"} <= dial.keys():
        words += (f": of {dial[0]['num']:,} boards n = 0 solves {percent(dial[0]['rate'])}, "
                  f"n = all {percent(dial['all']['rate'])} (`demo` in RESULTS.md)")
    words = textwrap.fill(words + ".", 100, break_long_words=False, break_on_hyphens=False)
    return f"```text\n{boards_beside(columns, moments, N)}\n```\n\n{words}"


# --------------------------------------------------------------------------------------------------
# Pages: the generated parts of RESULTS.md and README.md


def trained_blocks(file):
    """What `decoders.block_diffusion` printed with --json, a line for each size and order -> table.

    Blocks of one cell have one order, whose line may stand for both. Raises BadInput.
    """
    if not Path(file).exists():
        return ""
    text = header(["cells of a block", "latents", "solved %, random order within a block",
                   "left to right", "nats per cell", "tokens"])
    found = {}
    for i, line in enumerate(read_json(file, lines=True) or [{}]):
        check_fields(line, BLOCKS, file, f"line {i + 1}: ")
        found[line["size"], line["order"]] = line
    for size in sorted({size for size, _ in found}):
        cells = []
        for order in ("random", "left_to_right"):
            line = found.get((size, "random" if size == 1 else order))
            if line is None:
                refuse(file, f"order {order}", f"is missing for blocks of {size}")
            low, high = line["interval"]
            cells.append(f"{100 * line['solved'] / line['num']:.1f} "
                         f"({100 * low:.1f}-{100 * high:.1f})")
        latents, bound = (f"0 to {size - 1}", "<= ") if size > 1 else ("0", "")
        text.append(f"| {size} | {latents} | {' | '.join(cells)} | "
                    f"{bound}{line['held_out_nats']:.4f} | {line['tokens']} |")
    return "\n".join(text)


def tables(folder, order):
    """The results folder -> {name of a part: text}."""
    found = load_results(folder, order)
    blocks = trained_blocks(Path(folder) / "decoders" / "trained-blocks-seed0.jsonl")
    decoded = compare.tables(found.pop("decoders", []))
    benches = [read_bench(file) for file in sorted(Path(folder).glob("bench*.json"))]
    everything = "\n\n".join([table(found, order), *map(bench_markdown, benches)])
    both = (f"{puzzles(found)}\n\nOwn test / Radcliffe, solved %: so many cells a pass; one a pass "
            f"with up to so many restarts:\n\n{several_cells(found)}")
    return {"rows": rows(found), "summary": summary(found), "puzzles": both,
            "table": everything, "decoders": decoded, "blocks": blocks}


def update_page(page, texts, file):
    """Put each of the texts {name: text} between its markers -> page. Raises BadInput."""
    for name, text in texts.items():
        flag = "--boards" if name == "board" else "--table"
        begin, end = f"<!-- {name}: python reproduce.py {flag} -->", f"<!-- end of {name} -->"
        for marker in (begin, end):
            if page.count(marker) != 1:
                many = "twice or more" if marker in page else "nowhere"
                raise BadInput(f"{printable(file, 200)} holds {marker} {many}; "
                               "it must stand there once. Nothing was written")
        before, after = page.index(begin), page.index(end)
        if after < before:
            raise BadInput(f"{printable(file, 200)} holds {end} before {begin}; "
                           "turn them round. Nothing was written")
        page = f"{page[:before]}{begin}\n{text}\n{page[after:]}"
    return page


def write_pages(pages, texts, folder):
    """pages {file: names of its parts}. All are read and put together before one is written."""
    done = {}
    for name, parts in pages.items():
        file = Path(folder) / name
        try:
            page = file.read_text(encoding="utf-8")
        except OSError as e:
            raise BadInput(f"cannot read {printable(file, 200)}: {e.strerror}") from None
        except ValueError:
            raise BadInput(f"{printable(file, 200)} is not UTF-8") from None
        done[file] = update_page(page, {part: texts[part] for part in parts}, file)
    for file, page in done.items():
        write_text(file, page)
    return list(done)
