"""ADJUST: without extra cells it is plain; with a true layer the next cell sees the last."""
import pytest
import torch
from conftest import ToyTask, empty, keys_for, random_model, task_config

from data import make_task
from decoders import finish
from decoders.adjust import adjust, layer_loss, main, train_layer, trunk_of
from decoders.board import Board
from decoders.plain import plain
from diffusion import joint
from plumbing.cli import run

TASK = ToyTask()


def decoded(model, loop, count=50):
    board = Board(model, TASK, joint, start := empty(TASK, count), keys_for(start), 1.0)
    tokens, stats = finish(board, loop(board))
    return tokens, stats


@pytest.mark.parametrize("order", ("random", "confidence", "entropy"))
def test_without_extra_cells_it_is_plain(order):
    """Bit for bit: tokens and passes. The layer is not asked."""
    model = random_model(TASK)
    ours = decoded(model, lambda board: adjust(board, trunk_of(model), None, 0, order))
    theirs = decoded(model, lambda board: plain(board, 1, order))
    assert torch.equal(ours[0], theirs[0])
    assert all(torch.equal(ours[1][k], theirs[1][k]) for k in theirs[1])


class Copycat(torch.nn.Module):
    """The true model of four bits that are all equal, with the parts that ADJUST asks for.

    Hidden state (B, S, 2), the same at all S: how often each bit stands among the known cells.
    """

    def __init__(self):
        super().__init__()
        self.token = torch.nn.Embedding(TASK.V, 2)
        self.position = torch.nn.Embedding(TASK.S, 2)
        self.head = torch.nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.token.weight.zero_()
            self.position.weight.zero_()
            self.token.weight[0, 0] = self.token.weight[1, 1] = 40.0
            self.head.weight.copy_(torch.eye(2))

    def forward(self, tokens, positions, rank=None):
        return self.head(self.token(tokens).sum(dim=1, keepdim=True).expand(-1, TASK.S, -1))


def test_the_next_cell_sees_the_last():
    """With a true layer the four bits of a pass are equal; of marginals, in one board of eight."""
    model = Copycat()
    trunk, passes = trunk_of(model), []
    for layer in (None, lambda embedded, h: embedded.sum(dim=1, keepdim=True).expand_as(h)):
        tokens, stats = decoded(model, lambda board, layer=layer: adjust(board, trunk, layer, 3),
                                count=2000)
        cells = tokens[:, TASK.P:]
        passes.append((cells == cells[:, :1]).all(dim=1).float().mean().item())
        assert (stats["nfe"] == 1).all() and (stats["tokens"] == TASK.S).all()
        assert cells[:, 0].float().mean() == pytest.approx(0.5, abs=0.06)  # 5 sigma
    assert passes[1] == 1.0 and passes[0] == pytest.approx(1 / 8, abs=0.04)


def test_the_loss_is_zero_for_a_layer_that_is_the_model():
    """KL and distance to the model's own next state, over unknown cells alone."""
    model = Copycat()
    answers = torch.cat([torch.full((6, 1), TASK.BOS), torch.tensor([[0] * 4, [1] * 4] * 3)], dim=1)
    turn = torch.stack([torch.randperm(4) for _ in range(6)])
    known = torch.tensor([[0], [1], [2], [0], [1], [3]])

    def loss(layer):
        return layer_loss(model, trunk_of(model), layer, TASK, joint, answers, turn, known, 2, 0.1)
    true = loss(lambda embedded, h: embedded.sum(dim=1, keepdim=True).expand_as(h))
    assert true.item() == pytest.approx(0.0, abs=1e-6)
    assert loss(lambda embedded, h: h).item() > 0.1


def test_training_brings_the_next_state_closer():
    """And leaves the model alone."""
    model = random_model(TASK).requires_grad_(False)
    model.head.weight *= 4  # opinions that depend on the neighbours
    trunk, before = trunk_of(model), {k: v.clone() for k, v in model.state_dict().items()}
    answers = decoded(model, lambda board: plain(board, 1, "random"), count=400)[0]

    def distance(layer):
        generator = torch.Generator().manual_seed(7)
        turn = torch.rand(400, 4, generator=generator).argsort(dim=1)
        known = torch.zeros(400, 1, dtype=torch.long)
        with torch.no_grad():
            return layer_loss(model, trunk, layer, TASK, joint, answers, turn, known, 2, 0.0).item()
    layer = train_layer(model, trunk, TASK, joint, answers, torch.Generator().manual_seed(0),
                        extra=3, steps=100)
    assert distance(layer) < 0.5 * distance(lambda embedded, h: h)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_program(tiny_checkpoints, capsys):
    argv = ["--ckpt", str(tiny_checkpoints["mdm"]), "--device", "cpu", "--num", "5"]
    assert not run(main, [*argv, "--steps", "2", "--answers", "3"])
    lines = capsys.readouterr().out.splitlines()
    task = make_task(task_config("sudoku-gen"))
    assert len(lines) == 8 and f"one by one                 {task.A}.0 passes" in lines[1]
    assert "4 a pass, with the layer    4.0 passes  12 layers" in lines[5]
    assert all("solved" in line and "TV" in line for line in lines[1:])
    assert run(main, ["--ckpt", str(tiny_checkpoints["ar"])]) == 2
    assert "ar on sudoku-gen" in capsys.readouterr().err
