"""Shared helpers: tiny tasks, models that know the truth, tiny trained checkpoints."""
import os
from types import SimpleNamespace

os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars only clutter a test log

import pytest
import torch

torch.set_num_threads(1)  # tiny models: one thread is faster than two that wait for each other

from data.sudoku import all_boards_4x4
from model import Transformer


def task_config(task="sudoku-gen", board_size=4, train_size=None, data_dir="unused", **kw):
    size = {"sudoku-gen": 288, "sudoku": 100}.get(task, 0) if train_size is None else train_size
    return SimpleNamespace(**{**dict(task=task, board_size=board_size, train_size=size, arms=2, path_len=3, labels=11, seed=0, data_dir=data_dir), **kw})


class ToyTask:
    """4 answer cells of 2 symbols behind a BOS: small enough to enumerate every mask and every answer."""
    name, P, A, S, K, V, MASK, BOS, unique_answer = "toy", 1, 4, 5, 2, 4, 2, 3, False


def random_model(task, width=32, depth=2, heads=2, seed=0):
    """A model with every weight random (init_weights starts the outputs at zero, which would hide leaks)."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(task.V, task.K, task.S, width, depth, heads)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=1.0 if p.shape[0] in (task.V, task.S) else p.shape[1] ** -0.5, generator=generator)
    return model.eval()


class TrueConditionals:
    """A 'model' that knows a distribution over answers exactly: support (M, A) with weights (M,).

    It answers log p(x_i | the known cells), whatever ranks and latents it is given: those carry no information.
    """

    def __init__(self, task, support, weights=None):
        self.task, self.support = task, support
        self.weights = torch.ones(len(support)) if weights is None else weights

    def __call__(self, tokens, positions, rank=None, causal=False, cache=None):
        task, (B, T) = self.task, tokens.shape
        cells = positions.expand(B, T) - task.P
        state = torch.full((B, task.A + 1), task.MASK)  # what is known of each answer cell; the last column is the prompt's bin
        state = state.scatter(1, torch.where(cells >= 0, cells, task.A), tokens)[:, :task.A]
        fits = ((self.support == state[:, None]) | (state[:, None] == task.MASK)).all(dim=2) * self.weights  # (B, M)
        onehot = torch.nn.functional.one_hot(self.support, task.K).float()  # (M, A, K)
        probs = torch.einsum("bm,mak->bak", fits / fits.sum(dim=1, keepdim=True), onehot)  # (B, A, K)
        return probs.gather(1, cells.clamp(min=0)[:, :, None].expand(-1, -1, task.K)).log().clamp(min=-1e9)  # (B, T, K)


class Oracle:
    """A 'model' that knows the solution of each prompt: its logits are 20 at the right symbol."""

    def __init__(self, task, answers):
        self.task, self.answers = task, answers

    def __call__(self, tokens, positions, rank=None, causal=False, cache=None):
        positions = positions.expand_as(tokens) + int(causal)  # causal: position i predicts i + 1
        full = torch.nn.functional.pad(self.answers, (self.task.P, 1))  # (B, S + 1)
        return torch.nn.functional.one_hot(full.gather(1, positions), self.task.K) * 20.0

    def new_cache(self):
        return None


@pytest.fixture(scope="session")
def boards4():
    return torch.tensor(all_boards_4x4())  # (288, 16)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


TINY = ["--width", "16", "--depth", "1", "--heads", "2", "--batch-size", "8", "--max-steps", "3", "--eval-samples", "4", "--device", "cpu"]


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory, data_dir):
    """One barely trained checkpoint per objective on 4x4, plus a star and a 9x9 puzzle model: {name: file}."""
    import train
    folder, files = tmp_path_factory.mktemp("ckpt"), {}
    jobs = {o: ["--preset", "sudoku4", "--objective", o] for o in ("mdm", "sidm", "scdm", "ar", "mtp")}
    jobs["star"] = ["--task", "star", "--arms", "2", "--path-len", "3", "--labels", "9", "--objective", "mtp"]
    jobs["sudoku9"] = ["--preset", "sudoku9-cpu", "--objective", "scdm", "--train-size", "20"]
    for name, argv in jobs.items():
        out = folder / name
        assert train.main(argv + TINY + ["--data-dir", data_dir, "--out", str(out)]) in (0, None)
        files[name] = out / "ckpt.pt"
    return files
