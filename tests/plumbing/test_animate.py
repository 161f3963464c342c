"""The moving picture: what it draws is what the trace says. (Drawn where matplotlib is there.)"""
import json

import pytest

import reproduce
from plumbing.animate import animate, caption, predictions
from plumbing.cli import BadInput
from plumbing.trace import to_text


@pytest.fixture(scope="module")
def columns():
    """Without and with latents."""
    return [(title, json.loads(to_text(shown))) for title, shown in reproduce.example_decodes()]


def test_what_is_drawn(columns):
    (_, none), (_, everybody) = columns
    for t in (0, 20):
        few = predictions(none["task"], none["samples"][0]["steps"][t], 6)
        many = predictions(everybody["task"], everybody["samples"][0]["steps"][t], 6)
        assert len(few) == 1 and len(many) == 36 - t and few.keys() <= many.keys()
        assert all(abs(sum(probs) - 1) < 0.02 for probs in [*few.values(), *many.values()])
        (cell, symbol), = none["samples"][0]["steps"][t]["set"]
        assert list(few) == [cell] and few[cell][symbol] > 0.02
    steps = none["samples"][0]["steps"]
    assert caption(none["samples"][0], steps[:9]) == "pass 9 of 36, 54 tokens"
    assert caption(none["samples"][0], steps) == "pass 36 of 36, 702 tokens: 3 mistakes"
    assert caption(everybody["samples"][0], everybody["samples"][0]["steps"]).endswith(": valid")


def test_a_picture_is_written(columns, tmp_path):
    pytest.importorskip("matplotlib")
    for _, trace in columns:
        trace["samples"][0]["steps"] = trace["samples"][0]["steps"][:3]
    animate(columns, tmp_path / "a.gif")
    data = (tmp_path / "a.gif").read_bytes()
    assert data[:6] == b"GIF89a" and data.count(b"\x21\xf9\x04") == 3  # frames
    assert [f.name for f in tmp_path.iterdir()] == ["a.gif"]


def test_without_matplotlib(columns, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(BadInput, match="--animate needs matplotlib; install it with: pip"):
        animate(columns, tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())
