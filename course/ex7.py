"""Exercise 7, the dial: one trained model at several numbers of latents, with intervals.

    python course/ex7.py                                  # n = 0 and n = all, 200 boards each
    python course/ex7.py --num 1000 --latents 0 2 8 all

Needs exercises 1, 3, 4 and 7. The boards are drawn from the seed, so that two people with the same
command get the same boards.
"""
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)

from metrics import show_count
from objectives import make_sampling_params
from plumbing.checkpoint import load_model
from plumbing.cli import ALL, Parser, choose_device, end, number, path, run
from sample import evaluate

SHIPPED = str(Path(__file__).resolve().parents[1] / "results" / "demo-dial" / "scdm-seed0.pt")


def bar(low, high, width=50):
    """`=` up to the lower end of the interval, `-` within it."""
    return "=" * round(low * width) + "-" * (round(high * width) - round(low * width))


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("--ckpt", metavar="FILE", type=path, default=SHIPPED,
                   help="a model of scdm (default: the one that is shipped)")
    p.add_argument("--latents", nargs="+", type=number(0, all_=True), default=[0, ALL])
    p.add_argument("--num", type=number(1, 100_000), default=200, help="boards (default: 200)")
    p.add_argument("--seed", type=number(0, 2**32), default=0, help="of the boards (default: 0)")
    args = p.parse_args(argv)
    device, autocast, _ = choose_device("auto")
    model, task, config = load_model(args.ckpt, device)
    start, references = task.test_set(args.num)
    print("latents  tokens  seconds  solved  95 % interval")
    for n in args.latents:
        sampling = make_sampling_params(config.objective, task, config.window, latents=n)
        metrics, _, _ = evaluate(model, task, config.objective, sampling, start, references,
                                 args.seed, device, autocast)
        low, high = metrics["interval"]
        print(f"{show_count(n, task.A - 1):>7}  {metrics['tokens']:6}  {metrics['seconds']:7.1f}  "
              f"{metrics['solved_rate']:6.1%}  {low:6.1%} to {high:6.1%}  {bar(low, high)}",
              flush=True)


if __name__ == "__main__":
    end(run(main))
