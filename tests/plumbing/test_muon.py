"""The batched Muon against torch's, matrix by matrix."""
import pytest
import torch

from plumbing import muon
from plumbing.muon import BatchedMuon, orthogonalize


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_batched_muon_is_torchs(weight_decay, monkeypatch):
    """Three steps on tall, square and wide matrices: equal within the rounding of fp32.

    The reference is torch.optim.Muon with the same gradients, patched to work in fp32.
    """
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    g = torch.Generator().manual_seed(0)
    shapes = [(24, 8), (24, 8), (8, 8), (8, 32), (8, 32), (32, 8)]
    first = [torch.randn(s, generator=g) for s in shapes]
    settings = dict(lr=torch.tensor(0.02), weight_decay=weight_decay)
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in first] for _ in range(2))
    optimizers = (BatchedMuon(ours, **settings),
                  torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw"))
    for _ in range(3):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn(a.shape, generator=g)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, p in zip(ours, theirs, first):
        moved = (b - p).norm()
        assert moved > 0.05 and (a - b).norm() < 1e-4 * moved
    states = [{k: v for k, v in o.state_dict()["state"][0].items()} for o in optimizers]
    assert states[0].keys() == states[1].keys()
    torch.testing.assert_close(states[0]["momentum_buffer"], states[1]["momentum_buffer"])


@pytest.mark.parametrize("shape", [(3, 24, 8), (2, 8, 8), (4, 8, 32)])
def test_bf16_is_near_fp32(shape):
    """The dtype on a GPU gives nearly the result of fp32: singular values near 1."""
    updates = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    settings = (3.4445, -4.7750, 2.0315), 5, 1e-7  # torch.optim.Muon's defaults
    exact = orthogonalize(updates, *settings, torch.float32)
    rounded = orthogonalize(updates, *settings, torch.bfloat16)
    assert exact.dtype == torch.float32 and rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.03 * exact.norm()
    values = torch.linalg.svdvals(exact)
    assert values.min() > 0.3 and values.max() < 1.3


class FakeStream(str):
    """A stand-in for a CUDA stream, which records its calls."""

    def wait_stream(self, other):
        NOTES.append(f"{self} waits for {other}")

    def __enter__(self):
        NOTES.append(f"on {self}")

    def __exit__(self, *_):
        NOTES.append("back")


NOTES = []


def test_streams_fork_and_join(monkeypatch):
    """Each function has a stream that waits for earlier work; later work waits for all streams."""
    names, device = iter("abcd"), torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(next(names)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream("now"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    muon.stream.cache_clear()
    for _ in range(2):  # the second call uses the same two streams
        muon.side_by_side([lambda: NOTES.append("one"), lambda: NOTES.append("two")], device)
        assert NOTES == ["a waits for now", "on a", "one", "back", "b waits for now", "on b", "two",
                         "back", "now waits for a", "now waits for b"]
        NOTES.clear()
    muon.stream.cache_clear()
