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


def latents(*counts):
    return tuple({"latents": n} for n in counts)


S6, STAR = PRESETS["sudoku6"], PRESETS["demo"]
DIAL = dict(S6, objective="scdm", width=128, depth=6, heads=4, optimizer="muon", learning_rate=2e-3, max_seconds=150.0)
DIAL_FILE = "results/demo-dial/scdm-seed0.pt"

FINDINGS = {
    # One GPU, minutes: all five objectives on 6x6 boards.
    "sudoku6": (
        Run("ar", dict(S6, objective="ar")),
        Run("mtp-1", dict(S6, objective="mtp", window="1")),
        Run("mtp-all", dict(S6, objective="mtp", window="all")),
        Run("sidm", dict(S6, objective="sidm")),
        Run("scdm", dict(S6, objective="scdm"), latents(0, 1, 2, 4, 8, 16, 32, ALL)),
        Run("mdm", dict(S6, objective="mdm")),
    ),
    # Two CPU cores: star graphs trained live, and a shipped 6x6 model dialled.
    "demo": (
        Run("mtp-all", dict(STAR, objective="mtp", window="all", max_steps=4000, stop_at_solved=0.98)),
        Run("mtp-1", dict(STAR, objective="mtp", window="1"), steps_of="mtp-all"),
        Run("ar", dict(STAR, objective="ar"), steps_of="mtp-all"),
        Run("scdm", {}, latents(0, 4, 16, ALL), shipped=DIAL_FILE),
    ),
    # One GPU: the checkpoint that the demo ships.
    "demo-dial": (Run("scdm", DIAL, latents(0, 1, 2, 4, 8, 16, 32, ALL), ship=True),),
}
NUM = {"demo": 1024}  # samples per row; 1,000 elsewhere


# ---------------------------------------------------------------------------------------------------------
# Train and evaluate


def do_run(preset, r, seed, args, command):
    """Train or load one Run, evaluate its grid, write its json and log -> the json's dict."""
    device, autocast, _ = choose_device(args.device)
    out = Path(args.out) / preset / f"{r.name}-seed{seed}"
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
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        source = f"trained earlier, in {out}" if train(config, resume=True) is None else "trained live"
        with open(out / "log.csv", encoding="utf-8") as f:
            last = list(csv.DictReader(f))[-1]
        training = {"steps": int(last["step"]), "seconds": float(last["seconds"]), "loss_nats": float(last["loss_nats"]),
                    "wall_seconds": round(time.perf_counter() - start, 1),
                    "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None}
    model, task, config = load_model(file, device)
    prompts, references = task.test_set(args.num or NUM.get(preset, 1000))
    rows = []
    if device.type == "cuda":  # the first passes of these shapes load kernels and allocate: not on the clock
        evaluate(model, task, config.objective, make_dials(config.objective, task, config.window), prompts, None, 0, device, autocast)
    for asked in r.grid:
        dials = make_dials(config.objective, task, config.window, **asked)
        label = f"{r.name} {' '.join(f'{k} {show_count(v, task)}' for k, v in asked.items())}"
        metrics, _ = evaluate(model, task, config.objective, dials, prompts, references, seed, device, autocast, label=label)
        rows.append({"objective": config.objective, "trained_window": config.window if config.objective == "mtp" else None,
                     "latents": show_count(dials.latents, task), "order": dials.order, "temperature": dials.temperature, **metrics})
        print(f"  {source}: {label} solved {metrics['solved']}/{metrics['num']} in {metrics['seconds']:.1f} s", flush=True)
    name = device.type if device.type != "cuda" else torch.cuda.get_device_name()
    result = {"preset": preset, "name": r.name, "seed": seed, "source": source, "command": command, "params": model.num_params(),
              "training": training, "machine": {"device": name, "threads": torch.get_num_threads(), "torch": str(torch.__version__),
                                                "python": platform.python_version()},
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
        loaded = [json.loads(f.read_text(encoding="utf-8")) for f in files]
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
        first = pairs[0][1]
        rates = [r["solved_rate"] for _, r in pairs]
        out.append({"name": name, "objective": first["objective"], "window": first["trained_window"], "latents": first["latents"],
                    "task": describe(pairs[0][0]["config"]), "solved": k, "num": n, "rate": k / n, "interval": wilson(k, n), "seeds": len(pairs),
                    "rates": rates, "nfe": first["nfe"], "tokens": first["tokens"],
                    "seconds": sum(r["seconds"] for _, r in pairs) / len(pairs), "source": pairs[0][0]["source"].split(" in ")[0].split(",")[0].split(" from ")[0],
                    "steps": " ".join(str(d["training"]["steps"]) for d, _ in pairs if d["training"]),
                    "train_seconds": [d["training"] and d["training"]["seconds"] for d, _ in pairs]})
    return out


def findings(results):
    """What the rows of one preset say, in a sentence each -> list of str."""
    rows, said = pooled(results), []
    rate = {(r["name"], r["latents"]): 100 * r["rate"] for r in rows}
    seconds = {(r["name"], r["latents"]): r["seconds"] for r in rows}

    def gap(what, low, high):
        if low in rate and high in rate:
            said.append(f"{what}: {rate[low]:.1f} % -> {rate[high]:.1f} % ({rate[high] - rate[low]:+.1f} points)")

    gap("without latents (sidm) -> joint prediction (mdm)", ("sidm", 0), ("mdm", "all"))
    gap("one scdm model, no latents -> all latents", ("scdm", 0), ("scdm", "all"))
    dial = [r["latents"] for r in rows if r["name"] == "scdm"]
    if len(dial) > 2:
        said.append("the dial: " + ", ".join(f"n = {n}: {rate['scdm', n]:.1f} % in {seconds['scdm', n]:.2f} s" for n in dial))
    gap("autoregressive, without latents (mtp, W = 1) -> with (mtp, W = all)", ("mtp-1", 0), ("mtp-all", "all"))
    return said


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
        m, seeds = results[0]["machine"], {d["seed"] for d in results}
        text += [f"**{preset}**: `{results[0]['command']}` ({m['device']}, {m['threads']} threads, torch {m['torch']}, {len(seeds)} seed{'s' * (len(seeds) > 1)})", ""]
        text += ["| task | objective | latents | solved % | counts | 95 % interval | per seed % | NFE | tokens | seconds | weights |", "|---|---|---|---|---|---|---|---|---|---|---|"]
        for r in pooled(results):
            low, high = r["interval"]
            objective = r["objective"] + (f" (trained at W = {r['window']})" if r["window"] else "")
            trained = [s for s in r["train_seconds"] if s]
            weights = f"{r['source']}, {sum(trained) / len(trained):.0f} s, {r['steps']} steps" if trained else r["source"]
            text.append(f"| {r['task']} | {objective} | {r['latents']} | {100 * r['rate']:.1f} | {r['solved']}/{r['num']} | {100 * low:.1f}-{100 * high:.1f} | "
                        f"{' '.join(f'{100 * x:.0f}' for x in r['rates'])} | {r['nfe']} | {r['tokens']} | {r['seconds']:.2f} | {weights} |")
        text.append("")
    return "\n".join(text).rstrip()


COLORS = {"mdm": "#1b6ca8", "sidm": "#c0392b", "scdm": "#2a9d5c", "mtp": "#8e44ad", "ar": "#7f7f7f"}


def figures(found, folder):
    """Accuracy against latents and against seconds, both families: one file per preset in which something is dialled."""
    try:
        import matplotlib
    except ImportError:
        raise BadInput("--figures needs matplotlib; install it with: pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    files = []
    for preset, results in found.items():
        rows = pooled(results)
        dialled = [r["latents"] for r in rows if r["latents"] not in (0, "all")]
        if not dialled:
            continue
        for r in rows:
            r["x"] = 2.2 * max(dialled) if r["latents"] == "all" else r["latents"]
            r["ms"] = 1000 * r["seconds"] * r["seeds"] / r["num"]
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
        for axis, x in ((left, "x"), (right, "ms")):
            drawn = {}
            for r in rows:
                drawn.setdefault((r["name"], r["objective"]), []).append(r)
            for (name, objective), members in drawn.items():
                y = [100 * r["rate"] for r in members]
                error = [[100 * (r["rate"] - r["interval"][0]) for r in members], [100 * (r["interval"][1] - r["rate"]) for r in members]]
                label = f"{objective}{' W = ' + members[0]['window'] if members[0]['window'] else ''} ({members[0]['task']})"
                marker = "s" if objective in ("ar", "mtp") else "o"  # squares: left to right; circles: diffusion
                hollow = "none" if members[0]["latents"] == 0 and len(members) == 1 else COLORS[objective]  # hollow: no latents
                axis.errorbar([r[x] for r in members], y, yerr=error, fmt="-" + marker, color=COLORS[objective], mfc=hollow, capsize=3, label=label)
        left.set_xscale("symlog", linthresh=1)
        ticks = sorted({r["x"] for r in rows})
        left.set_xticks(ticks, ["all" if t > max(dialled) else str(t) for t in ticks])
        left.minorticks_off()
        left.set_xlabel("latent tokens in each forward pass")
        left.set_ylabel("solved, %")
        left.set_ylim(0, 103)
        right.set_xlabel("milliseconds per sample (measured)")
        if max(r["ms"] for r in rows) > 20 * min(r["ms"] for r in rows):
            right.set_xscale("log")
            right.xaxis.set_major_formatter("{x:g}")
            right.xaxis.set_minor_formatter("")
        else:
            right.set_xlim(left=0)
        for axis in (left, right):
            axis.grid(alpha=0.25)
        right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
        seeds = max(r["seeds"] for r in rows)
        figure.suptitle(f"{preset}: accuracy against latents and against time ({seeds} seed{'s' * (seeds > 1)}, 95 % intervals)", fontsize=11)
        figure.tight_layout()
        files.append(Path(folder) / f"{preset}.png")
        figure.savefig(files[-1], dpi=120, metadata={"Software": None})
        plt.close(figure)
    return files


def update_readme(text, readme):
    """Put the table between the markers of the README."""
    begin, end = "<!-- table: python reproduce.py --table -->", "<!-- end of table -->"
    before, _, rest = readme.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{text}\n{end}{after}"


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
    p.add_argument("--num", type=number(1), help="samples per row; default 1,024 for demo, else 1,000")
    p.add_argument("--max-steps", type=number(1), help="train shorter than the preset (said in the json)")
    p.add_argument("--max-seconds", type=number(1, kind=float), help="train no longer than this, each (said in the json)")
    p.add_argument("--only", help="only the runs with these names, comma-separated")
    p.add_argument("--device", choices=DEVICES, default="auto", help="where to run")
    args = p.parse_args(argv)
    if args.table:
        text = table(load_results(args.results))
        print(text)
        if args.readme:
            readme = HERE / "README.md"
            readme.write_text(update_readme(text, readme.read_text(encoding="utf-8")), encoding="utf-8")
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
