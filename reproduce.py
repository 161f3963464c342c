"""Reproduce the findings: train what a finding needs, evaluate the grid, write results/, make the table and the figure.

    n latents   W window   k of n solved, with the 95 % Wilson interval

    python reproduce.py --preset demo        # two CPU cores, minutes
    python reproduce.py --table              # from results/ alone; --figures likewise

Each training and seed is one file results/<preset>/<name>-seed<k>.json: command, config, machine, one row per
dial; its log.csv lies beside it. Nothing in the README is typed by hand: a test compares it with these files.
"""
import csv
import json
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import bench
from data import BadInput
from sample import ALL, DEVICES, Parser, choose_device, evaluate, load_checkpoint, load_model, make_dials, number, run, show_count, wilson
from train import PRESETS, Config, save_checkpoint, train

HERE = Path(__file__).parent


# ---------------------------------------------------------------------------------------------------------
# EDIT HERE: what each preset trains and evaluates


@dataclass
class Run:
    """One training (or one shipped checkpoint) and the dials it is evaluated at."""
    name: str
    config: dict  # Config fields
    grid: tuple = ({},)  # arguments of make_dials
    steps_of: str = ""  # train exactly as many steps as that run took (for controls of a run that stops when it has solved)
    shipped: str = ""  # a checkpoint of this repository to load instead of training
    ship: bool = False  # keep the trained weights, in bf16, beside the results


def dialled(dial, *counts):
    return tuple({dial: n} for n in counts)


FOUR = {"ar": dict(objective="ar"), "mtp-1": dict(objective="mtp", window="1"), "mtp-all": dict(objective="mtp", window="all"), "mdm": dict(objective="mdm")}
S6, DEMO, STAR, PLANNING = (PRESETS[p] for p in ("sudoku6", "demo", "star", "planning"))
WINDOWS = dict(S6, objective="mtp", max_seconds=60.0)
DIAL = dict(S6, objective="scdm", width=96, depth=10, heads=3, optimizer="muon", learning_rate=2e-3, max_seconds=90.0)
DIAL_FILE = "results/demo-dial/scdm-seed0.pt"

FINDINGS = {
    # One GPU, minutes: all five objectives on 6x6 boards.
    "sudoku6": (
        Run("ar", dict(S6, objective="ar")),
        Run("mtp-1", dict(S6, objective="mtp", window="1")),
        Run("mtp-all", dict(S6, objective="mtp", window="all")),
        Run("sidm", dict(S6, objective="sidm")),
        Run("scdm", dict(S6, objective="scdm"), dialled("latents", 0, 1, 2, 4, 8, 16, 32, ALL)),
        Run("mdm", dict(S6, objective="mdm")),
    ),
    # One GPU: mtp with one model for each window, and one model for all of them.
    "windows": (
        *(Run(f"mtp-{w}", dict(WINDOWS, window=w)) for w in ("1", "4", "8", "16", "all")),
        Run("mtp-random", dict(WINDOWS, window="random"), dialled("window", 1, 4, 8, 16, ALL)),
    ),
    # One GPU: star graphs, where only the second token is hard. Five arms get more seconds.
    "star": tuple(Run(f"{name}-d{d}", dict(STAR, arms=d, max_seconds=seconds, **o)) for d, seconds in ((2, 30.0), (5, 120.0)) for name, o in FOUR.items()),
    # One GPU: minimal planning, by planning distance.
    "planning": tuple(Run(name, dict(PLANNING, **o)) for name, o in FOUR.items()),
    # Two CPU cores: star graphs trained live, and a shipped 6x6 model dialled.
    "demo": (
        Run("mtp-all", dict(DEMO, objective="mtp", window="all", max_steps=4000, stop_at_solved=0.98)),
        Run("mtp-1", dict(DEMO, objective="mtp", window="1"), steps_of="mtp-all"),
        Run("ar", dict(DEMO, objective="ar"), steps_of="mtp-all"),
        Run("scdm", {}, dialled("latents", 0, 4, 16, ALL), shipped=DIAL_FILE),
    ),
    # One GPU: the checkpoint that the demo ships.
    "demo-dial": (Run("scdm", DIAL, dialled("latents", 0, 1, 2, 4, 8, 16, 32, ALL), ship=True),),
}
NUM = {"demo": 1024, "sudoku6": 8192, "windows": 8192}  # samples per row, 2,048 elsewhere; 8,192 boards of 6x6 fill a GPU, so that seconds can be compared


# ---------------------------------------------------------------------------------------------------------
# Train and evaluate


def do_run(preset, r, seed, args, command):
    """Train or load one Run, evaluate its grid, write its json and log -> the json's dict."""
    device, autocast, _ = choose_device(args.device)
    out = Path(args.out) / preset / f"{r.name}-seed{seed}"
    begun = time.perf_counter()
    if r.shipped:
        file, source, training = HERE / r.shipped, f"loaded from {r.shipped}", None
    else:
        changes = {k: v for k, v in (("max_steps", args.max_steps), ("max_seconds", args.max_seconds)) if v}
        config = Config(**{**r.config, "seed": seed, "device": args.device, "out": str(out), **changes})
        if r.steps_of:
            other = Path(args.results) / preset / f"{r.steps_of}-seed{seed}.json"
            if not other.exists():
                raise BadInput(f"{r.name} trains as many steps as {r.steps_of}, and {other} does not exist; run {r.steps_of} first")
            config.max_steps = json.loads(other.read_text(encoding="utf-8"))["training"]["steps"]
        file = out / "ckpt.pt"
        bench.watch_memory(device)
        taken_up = train(config, resume=True) is None
        source = f"trained earlier, in {out}" if taken_up else "trained live"
        with open(out / "log.csv", encoding="utf-8") as f:
            last = list(csv.DictReader(f))[-1]
        peak = bench.peak_memory_gb(device)
        training = {"steps": int(last["step"]), "seconds": float(last["seconds"]), "loss_nats": float(last["loss_nats"]),
                    "wall_seconds": round(time.perf_counter() - begun, 1),
                    "peak_memory_gb": peak and round(peak, 2)}
        earlier = Path(args.results) / preset / f"{r.name}-seed{seed}.json"
        if taken_up and earlier.exists():  # it knows what that training took
            training = json.loads(earlier.read_text(encoding="utf-8"))["training"]
    model, task, config = load_model(file, device)
    prompts, references = task.test_set(args.num or NUM.get(preset, 2048))
    rows = []
    for asked in r.grid:
        dials = make_dials(config.objective, task, config.window, **asked)
        if device.type == "cuda":  # the first pass of each shape loads kernels: not on the clock
            evaluate(model, task, config.objective, dials, prompts, None, seed, device, autocast)
        label = f"{r.name} {' '.join(f'{k} {show_count(v, task)}' for k, v in asked.items())}"
        metrics, answers = evaluate(model, task, config.objective, dials, prompts, references, seed, device, autocast, label=label)
        rows.append({"objective": config.objective, "trained_window": config.window if config.objective == "mtp" else None,
                     "latents": show_count(dials.latents, task), "order": dials.order, "temperature": dials.temperature, **metrics})
        if task.name == "planning":
            distance, solved = task.distance(prompts), task.check(prompts, answers)
            rows[-1]["by_distance"] = {str(k): [int(solved[distance == k].sum()), int((distance == k).sum())] for k in range(int(distance.max()) + 1)}
        print(f"  {source}: {label} solved {metrics['solved']}/{metrics['num']} in {metrics['seconds']:.1f} s", flush=True)
    name = device.type if device.type != "cuda" else torch.cuda.get_device_name()
    result = {"preset": preset, "name": r.name, "seed": seed, "source": source, "command": command, "params": model.num_params(),
              "training": training, "wall_seconds": round(time.perf_counter() - begun, 1),
              "machine": {"device": name, "threads": torch.get_num_threads(), "torch": str(torch.__version__), "python": platform.python_version()},
              "date": time.strftime("%Y-%m-%d"), "rows": rows, "config": {k: v for k, v in vars(config).items() if k not in ("out", "data_dir")}}
    folder = Path(args.results) / preset
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{r.name}-seed{seed}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not r.shipped:
        shutil.copyfile(out / "log.csv", folder / f"{r.name}-seed{seed}.csv")
    if r.ship:
        checkpoint = load_checkpoint(file)
        checkpoint["model"] = {k: v.bfloat16() for k, v in checkpoint["model"].items()}
        checkpoint["config"] = {**checkpoint["config"], "out": "", "data_dir": ""}
        save_checkpoint({k: checkpoint[k] for k in ("model", "step", "config", "versions")}, folder / f"{r.name}-seed{seed}.pt")
    return result


# ---------------------------------------------------------------------------------------------------------
# The table and the figure, from results/ alone


def load_results(folder):
    """results/ -> {preset: [json dict, ...]}, in the order of FINDINGS."""
    found = {}
    for preset, runs in FINDINGS.items():
        order = {r.name: i for i, r in enumerate(runs)}
        files = sorted((Path(folder) / preset).glob("*-seed*.json"))
        loaded = [dict(json.loads(f.read_text(encoding="utf-8")), log=f.with_suffix(".csv")) for f in files]
        loaded = [d for d in loaded if d["name"] in order]
        if loaded:
            found[preset] = sorted(loaded, key=lambda d: (order[d["name"]], d["seed"]))
    if not found:
        raise BadInput(f"no results in {folder}; make some with: python reproduce.py --preset demo")
    return found


def pooled(results):
    """The runs of one preset -> one dict per (name, dial), seeds added up."""
    rows = {}
    for d in results:
        for i, row in enumerate(d["rows"]):
            rows.setdefault((d["name"], i), []).append((d, row))
    out = []
    for (name, _), pairs in rows.items():
        k, n = sum(r["solved"] for _, r in pairs), sum(r["num"] for _, r in pairs)
        first, trained = pairs[0][1], [d["training"] for d, _ in pairs if d["training"]]
        distances = {}
        for _, r in pairs:
            for distance, (solved, num) in r.get("by_distance", {}).items():
                a, b = distances.get(distance, (0, 0))
                distances[distance] = (a + solved, b + num)
        out.append({"name": name, "objective": first["objective"], "window": first["trained_window"], "latents": first["latents"],
                    "task": describe(pairs[0][0]["config"]), "machine": pairs[0][0]["machine"]["device"], "solved": k, "num": n, "rate": k / n, "interval": wilson(k, n), "seeds": len(pairs),
                    "rates": [r["solved_rate"] for _, r in pairs], "nfe": first["nfe"], "tokens": first["tokens"],
                    "seconds": sum(r["seconds"] for _, r in pairs) / len(pairs), "params": pairs[0][0]["params"], "by_distance": distances,
                    "steps": " ".join(str(t["steps"]) for t in trained), "train_seconds": [t["seconds"] for t in trained],
                    "memory": max((t["peak_memory_gb"] or 0 for t in trained), default=0)})
    return out


def gaps(rows):
    """What latents change, at equal training seconds -> [(task, what, row without latents, row with all of them)]."""
    pairs = []
    for task in dict.fromkeys(r["task"] for r in rows):
        of = {(r["objective"], r["window"], r["latents"]): r for r in rows if r["task"] == task}
        for what, low, high in (("diffusion: independent (sidm) or joint (mdm)", ("sidm", None, 0), ("mdm", None, "all")),
                                ("diffusion: one scdm model at n = 0 or n = all", ("scdm", None, 0), ("scdm", None, "all")),
                                ("autoregressive: mtp trained with W = 1 or W = all", ("mtp", "1", 0), ("mtp", "all", "all"))):
            if low in of and high in of:
                pairs.append((task, what, of[low], of[high]))
    return pairs


def findings(results):
    """What the rows of one preset say, in a sentence each -> list of str."""
    rows = pooled(results)
    said = [f"{task}: {what}: {100 * a['rate']:.1f} % -> {100 * b['rate']:.1f} % ({100 * (b['rate'] - a['rate']):+.1f} points)" for task, what, a, b in gaps(rows)]
    dial = [r for r in rows if r["objective"] == "scdm"]
    if len(dial) > 2:
        said.append("the dial: " + ", ".join(f"n = {r['latents']}: {100 * r['rate']:.1f} % in {r['seconds']:.2f} s" for r in dial))
    special = {r["latents"]: r for r in rows if r["window"] not in (None, "random")}
    for r in rows:
        if r["window"] == "random" and r["latents"] in special:
            a, b = 100 * special[r["latents"]]["rate"], 100 * r["rate"]
            said.append(f"{show_window(r['latents'])}: a model of its own {a:.1f} %, the one for all windows {b:.1f} % ({b - a:+.1f} points)")
    return said


def summary(found):
    """Markdown: one line per finding."""
    text = ["| task | what is compared | no latents, solved % | all latents, solved % | seeds | preset |", "|---|---|---|---|---|---|"]

    def share(r):
        low, high = r["interval"]
        seeds = f"; seeds {' '.join(f'{100 * x:.0f}' for x in r['rates'])}" if r["seeds"] > 1 else ""
        return f"{100 * r['rate']:.1f} ({100 * low:.1f}-{100 * high:.1f}{seeds})"

    for preset, results in found.items():
        text += [f"| {task} | {what} | {share(a)} | {share(b)} | {a['seeds']} | `{preset}` |" for task, what, a, b in gaps(pooled(results))]
    return "\n".join(text)


def show_window(latents):
    return "W = all" if latents == "all" else f"W = {latents + 1}"


def describe(config):
    if config["task"].startswith("sudoku"):
        return f"{config['task']} {config['board_size']}x{config['board_size']}"
    if config["task"] == "star":
        return f"star G({config['arms']},{config['path_len']})"
    return config["task"]


def table(found):
    """Markdown, one table per preset."""
    text = []
    for preset, results in found.items():
        machines = dict.fromkeys(f"{m['device']}, {m['threads']} threads, torch {m['torch']}" for m in (d["machine"] for d in results))
        walls = {}
        for d in results:
            walls.setdefault(d["name"], []).append(d["wall_seconds"])
        minutes = sum(sum(wall) / len(wall) for wall in walls.values()) / 60
        fewest, most = min(map(len, walls.values())), max(map(len, walls.values()))
        command = f"python reproduce.py --preset {preset}" + (f" --seeds {most}" if most > 1 else "")
        text += [f"**{preset}**: `{command}` ({' and '.join(machines)}; {f'{fewest} to ' * (fewest < most)}{most} seed{'s' * (most > 1)}, "
                 f"{minutes:.1f} minutes each with training, compiling and evaluation)", ""]
        rows = pooled(results)
        text += ["| task | objective | latents | solved % | counts | 95 % interval | per seed % | NFE | tokens | seconds | weights | GB |",
                 "|---|---|---|---|---|---|---|---|---|---|---|---|"]
        for r in rows:
            low, high = r["interval"]
            objective = r["objective"] + (f" (trained at W = {r['window']})" if r["window"] else "")
            trained = r["train_seconds"]
            weights = f"{r['params'] / 1e6:.2f}M, " + (f"{sum(trained) / len(trained):.0f} s, {r['steps']} steps" if trained else "loaded")
            text.append(f"| {r['task']} | {objective} | {r['latents']} | {100 * r['rate']:.1f} | {r['solved']}/{r['num']} | {100 * low:.1f}-{100 * high:.1f} | "
                        f"{' '.join(f'{100 * x:.0f}' for x in r['rates'])} | {r['nfe']} | {r['tokens']} | {r['seconds']:.2f} | {weights} | {r['memory'] or '-'} |")
        if rows[0]["by_distance"]:
            distances = list(rows[0]["by_distance"])
            text += ["", "Solved %, with counts, by planning distance:", "", f"| objective | {' | '.join(distances)} |", "|---" * (1 + len(distances)) + "|"]
            for r in rows:
                objective = r["objective"] + (f" (W = {r['window']})" if r["window"] else "")
                text.append(f"| {objective} | " + " | ".join(f"{100 * k / n:.0f} ({k}/{n})" if n else "-" for k, n in r["by_distance"].values()) + " |")
        text.append("")
    return "\n".join(text).rstrip()


COLORS = {"mdm": "#1b6ca8", "sidm": "#c0392b", "scdm": "#2a9d5c", "mtp": "#8e44ad", "ar": "#7f7f7f"}


def figures(found, folder):
    """results/ -> files: accuracy against latents and time where something is dialled, accuracy against training where it is not."""
    try:
        import matplotlib
    except ImportError:
        raise BadInput("--figures needs matplotlib; install it with: pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    files = []
    for preset, results in found.items():
        rows = pooled(results)
        if preset in ("windows", "demo-dial"):  # windows is drawn with sudoku6: both families in one figure; demo-dial's model in demo
            continue
        if preset == "sudoku6":
            rows = [r for r in rows if r["objective"] != "mtp" or "windows" not in found] + pooled(found.get("windows", []))
            for r in rows:  # one task, but not one training time: the legend shall say that
                r["task"] = f"{sum(r['train_seconds']) / r['seeds']:.0f} s of training"
        seeds = max(r["seeds"] for r in rows)
        bars = "whiskers: lowest and highest seed" if seeds > 1 else "95 % intervals"
        title = f"{seeds} seed{'s' * (seeds > 1)}, {bars}"
        if any(r["latents"] not in (0, "all") for r in rows):
            figure = draw_dial(plt, rows, f"{preset}: accuracy against latents and against time ({title})")
        else:
            figure = draw_training(plt, results, f"{preset}: accuracy during training ({seeds} seed{'s' * (seeds > 1)})")
        figure.tight_layout()
        files.append(Path(folder) / f"{preset}.png")
        figure.savefig(files[-1], dpi=120, metadata={"Software": None})
        plt.close(figure)
    return files


def draw_dial(plt, rows, title):
    """Left: solved against latents. Right: against measured milliseconds, of one machine. One line for each model that is dialled."""
    most = max(r["latents"] for r in rows if r["latents"] != "all")
    for r in rows:
        r["x"] = 2.2 * most if r["latents"] == "all" else r["latents"]
        r["ms"] = 1000 * r["seconds"] * r["seeds"] / r["num"]
    lines, specialists = {}, [r for r in rows if r["window"] not in (None, "random")]
    for r in rows:  # the specialists of mtp, one model for each window, share a line
        name = "one model per window" if r in specialists and len(specialists) > 2 else f"W = {r['window']}" if r["window"] else ""
        lines.setdefault((r["objective"], "one model, any window" if r["window"] == "random" else name, r["task"]), []).append(r)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    machine = rows[0]["machine"]
    for axis, x in ((left, "x"), (right, "ms")):
        for i, ((objective, name, task), everyone) in enumerate(lines.items()):
            members = sorted((r for r in everyone if axis is left or r["machine"] == machine), key=lambda r: r["x"])
            if not members:
                continue
            line = "" if len(members) < len(everyone) else "--" if name.startswith("one model per") else "-"
            y = [100 * r["rate"] for r in members]
            low = [min(r["rates"]) if r["seeds"] > 1 else r["interval"][0] for r in members]
            high = [max(r["rates"]) if r["seeds"] > 1 else r["interval"][1] for r in members]
            error = [[max(0, a - 100 * b) for a, b in zip(y, low)], [max(0, 100 * b - a) for a, b in zip(y, high)]]
            marker = "s" if objective in ("ar", "mtp") else "o"  # squares: left to right; circles: diffusion
            at = [0.04 * i if r[x] == 0 else r[x] for r in members]  # whiskers at n = 0 would lie on each other
            hollow = "none" if len(members) == 1 and members[0]["latents"] == 0 else "white" if name == "one model, any window" else COLORS[objective]
            axis.errorbar(at, y, yerr=error, fmt=line + marker, color=COLORS[objective],
                          mfc=hollow, capsize=3, label=f"{objective}{', ' + name if name else ''}" + (f" ({task})" if len({r['task'] for r in rows}) > 1 else ""))
    left.set_xscale("symlog", linthresh=1)
    ticks = [x for x in (0, 1, 2, 4, 8, 16, 32, 64, 128, 2.2 * most) if any(r["x"] == x for r in rows)]
    left.set_xticks(ticks, ["all" if t > most else str(t) for t in ticks])
    left.minorticks_off()
    left.set_xlabel("latent tokens in each forward pass (n, or W - 1)")
    left.set_ylabel("solved, %")
    left.set_ylim(0, 103)
    right.set_xlabel(f"milliseconds per sample ({machine})")
    if max(r["ms"] for r in rows) > 20 * min(r["ms"] for r in rows):
        right.set_xscale("log")
        right.xaxis.set_major_formatter("{x:g}")
        right.xaxis.set_minor_formatter("")
    else:
        right.set_xlim(left=0)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    right.legend(*left.get_legend_handles_labels(), fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


def draw_training(plt, results, title):
    """One panel per task: solved against training seconds, a line for each run and seed, from the logs."""
    tasks = list(dict.fromkeys(describe(d["config"]) for d in results))
    figure, axes = plt.subplots(1, len(tasks), figsize=(5.5 * len(tasks) + 1, 4), squeeze=False)
    for axis, task in zip(axes[0], tasks):
        for d in (d for d in results if describe(d["config"]) == task):
            with open(d["log"], encoding="utf-8") as f:
                points = [(float(r["seconds"]), 100 * int(r["solved"]) / int(r["num"])) for r in csv.DictReader(f) if r["solved"]]
            objective, window = d["rows"][0]["objective"], d["rows"][0]["trained_window"]
            axis.plot(*zip(*points), "--" if window == "1" else "-", color=COLORS[objective], label=(objective + (f", W = {window}" if window else "")) if d["seed"] == results[0]["seed"] else None)
        axis.set(title=task, xlabel="training seconds", ylabel="solved, %", ylim=(-2, 103))
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def update_readme(texts, readme):
    """Put each of the texts {name: markdown} between the markers of that name in the README."""
    for name, text in texts.items():
        begin, end = f"<!-- {name}: python reproduce.py --table -->", f"<!-- end of {name} -->"
        before, _, rest = readme.partition(begin)
        readme = f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
    return readme


def tables(folder):
    """results/ -> {summary, table}: what --table prints and the README holds."""
    found = load_results(folder)
    text = table(found)
    for file in sorted(Path(folder).glob("bench*.json")):
        text += "\n\n" + bench.markdown(json.loads(file.read_text(encoding="utf-8")))
    return {"summary": summary(found), "table": text}


def main(argv=None):
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--preset", choices=sorted(FINDINGS), help="what to train and evaluate")
    p.add_argument("--seeds", type=number(1, 1000), default=1, help="seeds 0..K-1, each trained and evaluated")
    p.add_argument("--first-seed", type=number(0, 2**31), default=0, help="start at this seed instead")
    p.add_argument("--table", action="store_true", help="print the table from the results folder; no training")
    p.add_argument("--figures", action="store_true", help="draw the figures from the results folder; no training")
    p.add_argument("--readme", action="store_true", help="with --table: also write it into README.md")
    p.add_argument("--results", default=str(HERE / "results"), help="results folder")
    p.add_argument("--out", default="out", help="folder for checkpoints")
    p.add_argument("--num", type=number(1), help=f"samples per row; default {', '.join(f'{n:,} for {preset}' for preset, n in NUM.items())}, else 2,048")
    p.add_argument("--max-steps", type=number(1), help="train shorter than the preset (said in the json)")
    p.add_argument("--max-seconds", type=number(1, kind=float), help="train no longer than this, each (said in the json)")
    p.add_argument("--only", help="only the runs with these names, comma-separated")
    p.add_argument("--device", choices=DEVICES, default="auto", help="where to run")
    args = p.parse_args(argv)
    if args.table:
        texts = tables(args.results)
        print("\n\n".join(texts.values()))
        if args.readme:
            readme = HERE / "README.md"
            readme.write_text(update_readme(texts, readme.read_text(encoding="utf-8")), encoding="utf-8")
    if args.figures:
        for file in figures(load_results(args.results), args.results):
            print(f"drew {file}")
    if args.table or args.figures:
        return
    if not args.preset:
        raise BadInput(f"nothing to do; give --preset ({', '.join(sorted(FINDINGS))}), --table or --figures")
    runs = FINDINGS[args.preset]
    if args.only:
        unknown = set(args.only.split(",")) - {r.name for r in runs}
        if unknown:
            raise BadInput(f"--only {', '.join(sorted(unknown))} is not in preset {args.preset}; legal: {', '.join(r.name for r in runs)}")
        runs = [r for r in runs if r.name in args.only.split(",")]
    print(f"preset {args.preset}, {choose_device(args.device)[2]}", flush=True)
    for r in runs:
        print(f"  {r.name}: {'loaded from ' + r.shipped if r.shipped else f'trained here; what {args.out} already holds is taken up'}", flush=True)
    command = "python reproduce.py " + " ".join(argv if argv is not None else sys.argv[1:])
    start, done = time.perf_counter(), []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for r in runs:
            done.append(do_run(args.preset, r, seed, args, command))
    print(f"\n{table({args.preset: done})}\n")
    for line in findings(done):
        print(line)
    print(f"{time.perf_counter() - start:.0f} s in all; written to {args.results}/{args.preset}")


if __name__ == "__main__":
    sys.exit(run(main))
