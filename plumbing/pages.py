"""The pages and csv files of results/, made from its rows: no number in them is typed by hand.

A page results/NAME.md is results/pages/NAME.md with each {{...}} replaced by a number of a row:

    {{sudoku9-gen/ar}}                            solved in %: of preset sudoku9-gen, run ar
    {{sudoku9-gen/scdm latents=8 mean}}           mean and standard deviation over seeds
    {{sudoku9/mdm test=top95 restarts=16 nfe}}    the first row that fits; * stands for anything
    {{A / B seconds}}   {{A - B}}                 A and B are rows: their ratio, their difference
    {{sudoku9-gen/preset minutes}}                of the whole preset: minutes, command, machine

The csv files hold every row: all.csv what reproduce.py makes, bench.csv what bench.py makes.
"""
import csv
import fnmatch
import io
import re
import textwrap
from pathlib import Path

from errors import BadInput, printable
from plumbing.checkpoint import write_text
from plumbing.report import (BENCH_PARTS, COLUMNS, mean_and_sd, of_preset, percent,
                             pool_seeds, read_bench, read_json, show, sum_up)

FILLED = re.compile(r"\{\{(.+?)\}\}")
EXPRESSION = re.compile(r"(\S+/\S+(?: \w+=\S+)*)(?: ([/-]) (\S+/\S+(?: \w+=\S+)*))?(?: (\w+))?")

# --------------------------------------------------------------------------------------------------
# Rows


def result_rows(folder, found):
    """found, and the trained blocks of the folder -> pooled rows."""
    rows = [row for results in found.values() for row in pool_seeds(results)]
    blocks = Path(folder) / "decoders" / "trained-blocks-seed0.jsonl"
    if blocks.exists():  # what studies.block_diffusion printed with --json
        rows += [{"preset": "trained-blocks", "run": "block", "size": line["size"],
                  "order": line["order"], "latents": f"0 to {line['size'] - 1}",
                  "tokens": line["tokens"], "seconds": line["seconds"],
                  "nats_per_cell": line["held_out_nats"], **sum_up([(line["solved"], line["num"])])}
                 for line in read_json(blocks, "blocks", lines=True)]
    return rows


def bench_rows(folder):
    """bench*.json -> rows: preset is the file, run the part of it."""
    rows = []
    for file in sorted(Path(folder).glob("bench*.json")):
        bench = read_bench(file)
        rows += [{"preset": file.stem, "run": part, "machine": bench["device"],
                  **{name.replace(" ", "_"): value for name, value in row.items()}}
                 for part in BENCH_PARTS for row in bench.get(part, [])]
        rows += [{"preset": file.stem, "run": "exponent", "name": name, "value": value}
                 for name, value in bench.get("exponents", {}).items()]
    return rows


def select(rows, words):
    """"preset/run column=value ..." -> the rows that fit, in order. * stands for anything."""
    name, *conditions = words.split()
    preset, _, run = name.partition("/")
    asked = {"preset": preset, "run": run, **dict(c.split("=", 1) for c in conditions)}
    return [row for row in rows
            if all(fnmatch.fnmatchcase(str(row.get(k)), v) for k, v in asked.items())]


def say_field(row, field):
    """A column of a row, or what follows from several, as text."""
    if field == "mean":
        return mean_and_sd(row)
    if field == "interval":
        return f"{row['low']:.1f}-{row['high']:.1f}"
    if field == "counts":
        return f"{row['solved']:,} of {row['num']:,}"
    if field == "per_seed":
        *most, last = (percent(100 * rate, 0) for rate in row["rates"])
        return f"{', '.join(most)} and {last}" if most else last
    if field == "gain":
        return f"{row['gain']:+.1f} ± {row['gain_half_width']:.1f}"
    if field == "per_second":
        return show(float(f"{row['num'] / row['seeds'] / row['seconds']:.2g}"))
    if field == "tau":
        return f"{row['order_tau']:+.2f}"
    value = row[field]
    if value is None:
        raise ValueError
    if field in ("percent", "utilisation", "fraction", "lost"):
        return percent(value if field == "percent" else 100 * value)
    if field in ("nats_per_cell", "floor"):
        return f"{value:.4f}"
    if field == "minutes":
        return f"{value:.2g}"
    return f"{value:,.0f}" if field in ("train_seconds", "tokens") else show(value)


def answer(expression, rows):
    """What stands for {{expression}}. Raises ValueError where it names nothing."""
    parsed = EXPRESSION.fullmatch(expression)
    if not parsed:
        raise ValueError("cannot be read")
    first, sign, second, field = parsed.groups()
    field, sides = field or "percent", []
    for words in filter(None, (first, second)):
        fit = select(rows, words)
        if not fit:
            raise ValueError(f"names no row: {words}")
        sides.append(fit[0])
    try:
        if not sign:
            return say_field(sides[0], field)
        a, b = (side[field] for side in sides)
        return show(a / b) if sign == "/" else f"{a - b:.1f}"
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"names a row without {field}: {first}") from None


def fill(text, rows, file):
    """Replace each {{...}} of a page and wrap its paragraphs. Raises BadInput, naming the line, for
    one without a row."""
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            lines.append(FILLED.sub(lambda m: answer(m[1], rows), line))
        except ValueError as e:
            raise BadInput(f"{printable(file, 200)} line {number}: a {{{{...}}}} {e}; "
                           "make the results that it names, or mend the line") from None
    return "\n".join(wrapped(lines))


def wrapped(lines):
    """Paragraphs and the items of lists in lines of at most 100 columns; the rest as it is."""
    part, code = [], False
    for line in (*lines, ""):
        begins = line.startswith(("- ", "#", "|", "!", "<", "```"))
        if code or begins or not line:  # what stands before is complete
            if part:
                text = re.sub(" (= |± |%)", lambda m: m[0].replace(" ", "\0"), " ".join(part))
                yield from (one.replace("\0", " ") for one in textwrap.wrap(
                    text, 100, break_long_words=False, break_on_hyphens=False,
                    subsequent_indent="  " * text.startswith("- ")))
            part, code = [], code != line.startswith("```")
        if code or begins and not line.startswith("- ") or not line:
            yield line
        else:
            part.append(line.strip())


def to_csv(rows, columns):
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n")
    write.writerow(columns)
    for row in rows:
        write.writerow([f"{v:.6g}" if isinstance(v, float) and abs(v) < 1e6 else v
                        for v in (row.get(c) for c in columns)])
    return text.getvalue()


def between_markers(page, name, text, file):
    """Put the text between the markers of that name -> page. Raises BadInput."""
    begin, end = f"<!-- {name}: python reproduce.py --table -->", f"<!-- end of {name} -->"
    if begin not in page and end not in page:
        return page
    if (page.count(begin), page.count(end)) != (1, 1) or page.index(end) < page.index(begin):
        raise BadInput(f"{printable(file, 200)} must hold {begin} and below it {end}, each once")
    return f"{page.split(begin)[0]}{begin}\n{text}{end}{page.split(end)[1]}"


def pages(folder, found, order, front):
    """-> {file: text}: both csv files, each page, and the page `front` with its findings.

    Without a folder `pages` (results of one's own) the csv files alone. Raises BadInput.
    """
    folder = Path(folder)
    results, benches = result_rows(folder, found), bench_rows(folder)
    texts = {folder / "all.csv": to_csv(results, COLUMNS)}
    if benches:
        texts[folder / "bench.csv"] = to_csv(benches, dict.fromkeys(k for r in benches for k in r))
    rows = [*results, *benches, *(of_preset(p, r, order[p]) for p, r in found.items())]
    for file in sorted((folder / "pages").glob("*.md")):
        text = fill(file.read_text(encoding="utf-8"), rows, file)
        if file.stem == "findings":
            page = front.read_text(encoding="utf-8")
            texts[front] = between_markers(page, file.stem, text, front)
        else:
            made = f"<!-- made from pages/{file.name} by: python reproduce.py --table -->\n"
            texts[folder / file.name] = made + text
    return texts


def write(texts):
    """{file: text}: all are put together before one is written. -> the files that changed."""
    changed = [file for file, text in texts.items()
               if not file.exists() or file.read_text(encoding="utf-8") != text]
    for file in changed:
        write_text(file, texts[file])
    return changed
