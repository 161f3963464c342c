"""ADJUST: without extra cells it is plain; with a true layer the next cell sees the last."""
from contextlib import nullcontext

import pytest
import torch
from boards import BOARDS, TOY, board_of, generator
from conftest import empty, random_model

from decoders import finish
from decoders.plain import plain
from diffusion import independent, joint
from model import Transformer
from plumbing.cli import run
from studies import adjust as program
from studies.adjust import Layer, adjust, layer_cost, layer_loss, main, train_layer, trunk_of


@torch.no_grad()
def decoded(model, loop, count=50, ranks=joint):
    board = board_of(model, empty(TOY, count), TOY, ranks, 1.0)
    return finish(board, loop(board))


@pytest.mark.parametrize("ranks", (joint, independent))
@pytest.mark.parametrize("order", ("random", "confidence", "entropy"))
def test_without_extra_cells_it_is_plain(order, ranks):
    """Bit for bit: tokens and passes. The layer is not asked."""
    model = random_model(TOY)
    ours = decoded(model, lambda board: adjust(board, trunk_of(model), None, 0, order), ranks=ranks)
    theirs = decoded(model, lambda board: plain(board, 1, order), ranks=ranks)
    assert torch.equal(ours[0], theirs[0])
    assert all(torch.equal(ours[1][k], theirs[1][k]) for k in theirs[1])


class Copycat(torch.nn.Module):
    """The true model of four bits that are all equal, with the parts that ADJUST asks for.

    Hidden state (B, S, 2), the same at all S: 40 for each bit among the known cells, by its value.
    """

    def __init__(self):
        super().__init__()
        self.token, self.position = torch.nn.Embedding(TOY.V, 2), torch.nn.Embedding(TOY.S, 2)
        self.head = torch.nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.token.weight.zero_()
            self.position.weight.zero_()
            self.token.weight[0, 0] = self.token.weight[1, 1] = 40.0
            self.head.weight.copy_(torch.eye(2))

    def forward(self, tokens, positions, rank=None):
        return self.head(self.token(tokens).sum(dim=1, keepdim=True).expand(-1, TOY.S, -1))


def test_the_next_cell_sees_the_last():
    """With a true layer the four bits of a pass are equal; of marginals, in one board of eight."""
    model = Copycat()
    trunk, equal = trunk_of(model), []
    for loop in (lambda board: plain(board, 4), lambda board: adjust(
            board, trunk, lambda e, h: e.sum(dim=1, keepdim=True).expand_as(h), 3)):
        tokens, stats = decoded(model, loop, count=2000)
        cells = tokens[:, TOY.P:]
        equal.append((cells == cells[:, :1]).all(dim=1).float().mean().item())
        assert (stats["nfe"] == 1).all() and (stats["tokens"] == TOY.S).all()
        assert cells[:, 0].float().mean() == pytest.approx(0.5, abs=0.06)  # 5 sigma
    assert equal[1] == 1.0 and equal[0] == pytest.approx(1 / 8, abs=0.04)


def grows(e, h):
    return h + torch.tensor([40.0, 0.0])


def stays(e, h):
    return h


def test_the_loss_by_hand():
    """Every cell that becomes known adds 40 to the true state; only unknown cells are scored."""
    model = Copycat()

    def loss(layer, known, extra):
        return layer_loss(model, trunk_of(model), layer, TOY, joint,
                          torch.tensor([[TOY.BOS, 0, 0, 0, 0]]), torch.tensor([[2, 0, 3, 1]]),
                          torch.tensor([[known]]), extra, 0.1).item()

    assert loss(grows, 0, 3) == 0  # of the state before, not of the first
    assert loss(stays, 2, 1) == pytest.approx(0.1 * 39.5 / 2)  # smooth L1 of 40, 0; one cell
    assert loss(stays, 3, 1) == 0  # no cell is left
    assert loss(stays, 0, 1) > 0.5  # ln 2 of KL, from no knowledge to all


def test_the_target_is_the_objectives_own():
    """The frozen model sees by its ranking in training too."""
    model, seen = random_model(TOY, depth=1), []
    trunk = trunk_of(model)

    def watched(tokens, positions, rank=None):
        seen.append(((tokens[:, TOY.P:] == TOY.MASK).long(), rank))
        return trunk(tokens, positions, rank)

    layer_loss(model, watched, stays, TOY, independent, torch.tensor([[TOY.BOS, 0, 1, 1, 0]]),
               torch.tensor([[2, 0, 3, 1]]), torch.tensor([[1]]), 2, 0.1)
    assert [int(unknown.sum()) for unknown, _ in seen] == [3, 2, 1]
    assert all(torch.equal(rank[:, TOY.P:], unknown) for unknown, rank in seen)


def test_a_layer_sees_the_tokens_as_they_are_now():
    """What one cell shows changes the others; untrained, h goes through beside its own token."""
    g = generator()
    layer = Layer(32, 2, g)
    h = torch.nn.functional.rms_norm(torch.randn(1, 5, 32, generator=g), (32,))
    e = torch.randn(1, 5, 32, generator=g)
    other = e.clone()
    other[0, 2] += 1
    assert torch.allclose(layer(torch.zeros_like(e), h), h, atol=1e-5)
    moved = (layer(e, h) - layer(other, h)).abs().amax(dim=2)[0]
    assert moved[2] > 0 and (moved[[0, 1, 3, 4]] == 0).all()
    torch.nn.init.normal_(layer.block.attn.proj.weight, generator=g)
    assert ((layer(e, h) - layer(other, h)).abs().amax(dim=2) > 1e-4).all()
    assert layer(e, h).square().mean(dim=2).allclose(torch.ones(1, 5), atol=1e-3)  # normalised


@pytest.mark.parametrize("autocast", (nullcontext(), torch.autocast("cpu", torch.bfloat16)))
def test_training_brings_the_next_state_closer(autocast):
    """From every number of known cells, in bf16 too; the model stays as it is."""
    model = random_model(TOY).requires_grad_(False)
    model.head.weight *= 4  # opinions that depend on the neighbours
    trunk, before = trunk_of(model), {k: v.clone() for k, v in model.state_dict().items()}
    answers = decoded(model, lambda board: plain(board, 1, "random"), count=400)[0]

    @torch.no_grad()
    def distance(layer, known, layers):
        level = torch.rand(400, 4, generator=generator(7)).argsort(dim=1)
        return layer_loss(model, trunk, layer, TOY, joint, answers, level,
                          torch.full((400, 1), known), layers, 0.0).item()

    layer = train_layer(model, trunk, TOY, joint, answers, autocast, extra=3, steps=100)
    for known, layers in ((0, 2), (1, 1), (1, 2), (2, 1)):
        assert distance(layer, known, layers) < 0.5 * distance(stays, known, layers)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_a_layer_costs():
    """width 8: a block is 12 x 64 weights, the join 2 x 64, a head of 4 symbols 32."""
    model = Transformer(6, 4, 5, width=8, depth=3, heads=2, loops=2)
    assert layer_cost(model, Layer(8, 2, generator())) == (14 * 64 + 32) / (2 * 3 * 12 * 64 + 32)


def test_the_program(tiny_checkpoints, capsys, monkeypatch):
    """Its lines; that rows of a batch differ; that the layer which was trained is the one asked."""
    answers, report = {}, program.report
    monkeypatch.setattr(program, "ROWS", 2)
    monkeypatch.setattr(program, "report", lambda name, task, tokens, *rest: (
        answers.update({name: tokens}), report(name, task, tokens, *rest)))
    monkeypatch.setattr(program, "train_layer", lambda *args: lambda e, h: -h)
    argv = ["--device", "cpu", "--ckpt", str(tiny_checkpoints["mdm"]), "--num", "5"]
    assert run(main, ["--ckpt", str(tiny_checkpoints["ar"]), "--device", "cpu"]) == 2
    assert "ar on sudoku-gen" in capsys.readouterr().err
    monkeypatch.setattr(program, "layer_cost", lambda model, layer: 0.5)
    assert not run(main, [*argv, "--answers", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and f"one by one                 {BOARDS.A}.0 passes" in lines[1]
    assert "4 a pass, with the layer    4.0 passes  12 layers, 10.0 together" in lines[5]
    assert all("solved" in line and "TV" in line for line in lines[1:])
    assert all(len(tokens.unique(dim=0)) == 5 for tokens in answers.values())
    assert not torch.equal(answers["4 a pass, with the layer"], answers["4 a pass, marginals"])
    monkeypatch.undo()
    assert not run(main, [*argv, "--answers", "3", "--steps", "2"])
