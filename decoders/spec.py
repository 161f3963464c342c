"""An entry of the table in decoders/__init__.py: a decoder with its paper, rule and parameters."""
from collections.abc import Callable
from dataclasses import dataclass

from errors import BadInput, printable


@dataclass(frozen=True)
class Param:
    """A parameter: its default, and its smallest and largest legal value (or low: legal words)."""
    default: int | float | str
    low: int | float | tuple
    high: int | float = 0

    def legal(self):
        return " | ".join(self.low) if isinstance(self.low, tuple) else f"{self.low}..{self.high}"

    def parse(self, flag, text):
        """Text -> value. Raises BadInput."""
        if isinstance(self.low, tuple):
            if text in self.low:
                return text
        else:
            try:
                value = type(self.default)(text)
            except ValueError:
                value = None
            if value is not None and self.low <= value <= self.high:  # nan is in no range
                return value
        raise BadInput(f"{flag}: '{printable(text)}' is not legal; legal: {self.legal()}")


@dataclass(frozen=True)
class Decoder:
    decode: Callable  # (board, **params) -> a generator that yields after every change of the board
    paper: str        # arXiv id
    rule: str         # in one formula; p: probabilities of a cell, H: their entropy in nats
    params: dict      # name -> Param; the first is the one that --decoder-param VALUE sets
    null: dict        # settings at which it equals plain (all other parameters at their defaults)
    source: str       # where the default values come from
    sweep: tuple = ()  # values of the first parameter that show its effect, the default among them
    needs_network: bool = False  # it uses the inside of the model: embeddings, keys and values

    @property
    def main(self):
        """The name of the first parameter, which --decoder-param VALUE sets and a sweep varies."""
        return next(iter(self.params))

    def settings(self, asked=None):
        """All parameters as a dict: the values asked for, defaults for the others."""
        return {name: param.default for name, param in self.params.items()} | (asked or {})
