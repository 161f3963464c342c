"""Shared helpers: tiny tasks, models that know the truth, tiny trained checkpoints.

Reading order of tests/concepts, the tests that explain:
    test_model.py       who may look at whom: matrices written out by hand, leaks, sets of tokens
    test_losses.py      what is masked in training, and the bound, against enumeration
    test_objectives.py  an objective is a ranking: who sees whom in TRAINING; a new objective
    test_block_causal.py  bcdm, from sidm to mdm
    test_sample.py      the sampler: oracles, exact distributions, costs, starts of all kinds
    test_likelihood.py  the likelihood of held-out data and its bound, against enumeration
    test_tasks.py       boards, puzzles and graphs: symmetries, checkers against brute force
    test_puzzles.py     the puzzle generator: unique solutions, minimal givens
Other papers: test_decoders*.py, test_studies*.py. tests/plumbing: files, command lines, resume.
"""
import os
import tempfile
from types import SimpleNamespace

os.environ.setdefault("TQDM_DISABLE", "1")
import plumbing  # noqa: E402, F401  (before torch: see there)
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # tiny models: one thread is faster than two that wait for each other

from data.puzzles import all_boards_4x4  # noqa: E402
from model import Transformer  # noqa: E402
from noise import sample_keys  # noqa: E402
from objectives import OBJECTIVES  # noqa: E402

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SOLUTION = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
LINE = f"{PUZZLE} {SOLUTION}"


SCRATCH = tempfile.TemporaryDirectory()  # data_dir of tests that name none


def task_config(task="sudoku-gen", board_size=4, train_size=None, data_dir=SCRATCH.name, **kw):
    size = {"sudoku-gen": 288, "sudoku": 100}.get(task, 0) if train_size is None else train_size
    fields = dict(task=task, board_size=board_size, train_size=size, arms=2, path_len=3, labels=11,
                  seed=0, data_dir=data_dir, layout="inplace", minimal_fraction=0.2, train_file="")
    return SimpleNamespace(**{**fields, **kw})


class ToyTask:
    """4 answer cells of 2 symbols behind a BOS: small enough to enumerate masks and answers."""
    name, P, A, S, K, V, MASK, BOS, unique_answer = "toy", 1, 4, 5, 2, 4, 2, 3, False


def random_model(task, width=32, depth=2, heads=2, seed=0):
    """A model with random weights only (init_weights() sets outputs to zero, which hides leaks)."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(task.V, task.K, task.S, width, depth, heads)
    for p in model.parameters():
        std = 1.0 if p.shape[0] in (task.V, task.S) else p.shape[1] ** -0.5
        torch.nn.init.normal_(p, std=std, generator=generator)
    return model.eval()


def environment(**more):
    """The environment of a child process: one thread, so that it computes the same bits."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def keys_for(start, seed=0):
    """The key of each sample; equal starts get different keys."""
    return sample_keys(seed, start, copies_differ=True)


def empty(task, count):
    """Starts of `count` generated samples: BOS, then MASK everywhere."""
    prompt = torch.full((count, 1), task.BOS)
    return torch.cat([prompt, torch.full((count, task.A), task.MASK)], dim=1)


class TrueConditionals:
    """A 'model' that knows a distribution over answers exactly: support (M, A), weights (M,).

    It returns log p(x_i | known cells) and ignores ranks and latents.
    """

    def __init__(self, task, support, weights=None):
        self.task, self.support = task, support
        self.weights = torch.ones(len(support)) if weights is None else weights

    def __call__(self, tokens, positions, rank=None, cache=None, read_every=0):
        task, (B, T) = self.task, tokens.shape
        cells = positions.expand(B, T) - task.P
        # the answer cells, MASK if unknown; the last column receives the prompt
        state = torch.full((B, task.A + 1), task.MASK)
        state = state.scatter(1, torch.where(cells >= 0, cells, task.A), tokens)[:, :task.A]
        fits = (self.support == state[:, None]) | (state[:, None] == task.MASK)
        fits = fits.all(dim=2) * self.weights  # (B, M)
        onehot = torch.nn.functional.one_hot(self.support, task.K).float()  # (M, A, K)
        posterior = fits / fits.sum(dim=1, keepdim=True)
        probs = torch.einsum("bm,mak->bak", posterior, onehot)  # (B, A, K)
        index = cells.clamp(min=0)[:, :, None].expand(-1, -1, task.K)
        return probs.gather(1, index).log().clamp(min=-1e9)  # (B, T, K)


class Oracle:
    """A 'model' that knows each sample's solution, found by its prompt and givens.

    Its logits are 20 at the right symbol.
    """

    def __init__(self, task, start, answers):
        self.task, self.start, self.answers = task, start, answers

    def __call__(self, tokens, positions, rank=None, cache=None, read_every=0):
        rows = self.rows(tokens, positions.expand_as(tokens), rank)
        positions = positions.expand_as(tokens) + int(rank == "causal")  # position i predicts i + 1
        full = torch.nn.functional.pad(self.answers[rows], (self.task.P, 1))  # (B, S + 1)
        return torch.nn.functional.one_hot(full.gather(1, positions), self.task.K) * 20.0

    def rows(self, tokens, positions, rank):
        """The sample of each row of a batch: the one whose solution agrees with the known cells."""
        if len(self.start) == len(tokens) and tokens.shape[1] == 1:
            return torch.arange(len(tokens))  # a cached step has one token: the batch is in order
        whole = torch.cat([self.start[:, :self.task.P], self.answers], dim=1)  # (M, S)
        whole = torch.nn.functional.pad(whole, (0, 1))
        agree = whole[:, positions] == tokens  # (M, B, T)
        unknown = tokens == self.task.MASK
        return (agree | unknown).all(dim=2).float().argmax(dim=0)

    def new_cache(self):
        return None


@pytest.fixture(scope="session")
def boards4():
    return torch.tensor(all_boards_4x4())  # (288, 16)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


TINY = ["--width", "16", "--depth", "1", "--heads", "2", "--batch-size", "8", "--max-steps", "3",
        "--eval-samples", "4", "--device", "cpu"]


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory, data_dir):
    """{name: file} of barely trained checkpoints: each objective on 4x4, a star, puzzle models."""
    import train
    folder, files = tmp_path_factory.mktemp("ckpt"), {}
    puzzles = ["--preset", "sudoku9-cpu", "--train-size", "20"]
    jobs = {o: ["--preset", "sudoku4", "--objective", o] for o in OBJECTIVES}
    jobs["star"] = ["--task", "star", "--path-len", "3", "--labels", "9", "--objective", "mtp"]
    jobs["sudoku9"] = [*puzzles, "--objective", "scdm"]
    jobs["prompt9"] = [*puzzles, "--objective", "ar", "--layout", "prompt"]
    for name, argv in jobs.items():
        out = folder / name
        assert not train.main(argv + TINY + ["--data-dir", data_dir, "--out", str(out)])
        files[name] = out / "ckpt.pt"
    return files
