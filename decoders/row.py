"""What decoders/__init__.py lists: a decoder with its paper, its rule and its knobs."""
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Knob:
    """default; low: the smallest legal value and high: the largest, or low: the legal words."""
    default: int | float | str
    low: int | float | tuple
    high: int | float = 0


@dataclass(frozen=True)
class Decoder:
    decode: Callable  # (board, **knobs) -> a generator that yields after every change of the board
    paper: str        # arXiv id
    rule: str         # in one formula; p: probabilities of a cell, H: their entropy in nats
    knobs: dict       # name -> Knob; the first is the one that --knob VALUE sets
    null: dict        # the knobs at which it is plain, with the others at their defaults
    source: str       # where the default values are from
    sweep: tuple = ()  # values of the first knob that show what it does, the default among them
    needs_network: bool = False  # it looks inside the model: soft inputs, keys and values

    @property
    def main(self):
        """The name of the knob that --knob VALUE sets, and that a sweep turns."""
        return next(iter(self.knobs))

    def settings(self, asked=None):
        """All knobs, a dict: those asked for, the others at their defaults."""
        return {name: knob.default for name, knob in self.knobs.items()} | (asked or {})
