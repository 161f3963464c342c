"""Path-finding: the star graph and minimal planning, generated in bulk on the device.

    B batch   E edges   d arms   l nodes on an arm, start included
    labels: nodes are named 0..labels-1

The model sees node tokens only: the prompt is E shuffled edges (two tokens each), then start and
goal. Punctuation is part of the text format alone.
"""
import re

import torch

from data.files import read_paths
from data.task import Task
from errors import BadInput, printable


class Path(Task):
    """The base of both path tasks: edges (B, E, 2), start, goal, the nodes of the path (B, l)."""

    def __init__(self, config, name, E, path_nodes, A, edge_separator, goal_separator):
        self.labels, self.seed, self.train_size = config.labels, config.seed, config.train_size
        self.E, self.path_nodes = E, path_nodes
        self.edge_separator, self.goal_separator = edge_separator, goal_separator
        symbols = [str(i) for i in range(self.labels)]
        # tiktoken requires that every single byte is a token
        symbols += [c for c in "0123456789" if c not in symbols]
        super().__init__(name, P=2 * E + 2, A=A, symbols=symbols + [",", "|", "/", "-", "="],
                         answer_symbols=self.labels, pattern=r"\d+|[,|/\-=]", unique_answer=True)
        self.pool = None

    def sample(self, B, generator, device):
        """B fresh graphs -> tokens (B, S)."""
        def permutations(n):  # -> (B, n)
            return torch.rand(B, n, generator=generator, device=device).argsort(dim=1)

        edges, path = self.make_graph(permutations(self.labels), generator)  # (B, E, 2), (B, l)
        edges = edges.gather(1, permutations(self.E).unsqueeze(2).expand(-1, -1, 2))
        answer = self.answer_from_path(path)  # (B, A)
        return torch.cat([edges.flatten(1), path[:, :1], path[:, -1:], answer], dim=1)

    def train_batch(self, B, generator, device):
        """train_size 0: fresh graphs in every batch; otherwise a fixed set, made from `seed`."""
        self.prepare(device)
        if self.pool is None:
            tokens = self.sample(B, generator, device)
        else:
            pick = torch.randint(self.train_size, (B,), generator=generator, device=device)
            tokens = self.pool[pick]
        return tokens, self.no_given(tokens)

    def prepare(self, device):
        """Make the training data before the first step."""
        if self.train_size and self.pool is None:
            own = torch.Generator().manual_seed(self.seed)
            self.pool = self.sample(self.train_size, own, "cpu").to(device)

    def stream(self, num, seed):
        """The first `num` of a fixed stream, 100 at a time: they do not depend on num."""
        generator = torch.Generator().manual_seed(seed)
        blocks = [self.sample(100, generator, "cpu") for _ in range(-(-num // 100))]
        return torch.cat(blocks)[:num]

    def test_set(self, num):
        tokens = self.stream(num, 2**40)  # no training seed is that large (config.py)
        return self.start(tokens[:, :self.P]), tokens[:, self.P:]

    def held_out(self, num):
        tokens = self.stream(num, 2**40 + 1)
        return tokens, self.no_given(tokens)

    def no_given(self, tokens):
        """tokens (B, S) -> False (B, A): no cell of a path is given."""
        return torch.zeros(len(tokens), self.A, dtype=torch.bool, device=tokens.device)

    def answer_from_path(self, path):
        return path

    def steps(self, answer):
        """answer (B, A) -> its edges (B, l - 1, 2)."""
        return torch.stack([answer[:, :-1], answer[:, 1:]], dim=2)

    def check(self, start, answer):
        """(B, S), (B, A) -> (B,) bool: any path from start to goal along the edges is valid."""
        prompt, steps = start[:, :self.P], self.steps(answer)
        edges = prompt[:, :-2].reshape(len(prompt), 1, self.E, 2)
        on_edge = (steps.unsqueeze(2) == edges).all(dim=3).any(dim=2).all(dim=1)
        chained = (steps[:, :-1, 1] == steps[:, 1:, 0]).all(dim=1)
        from_start = steps[:, 0, 0] == prompt[:, -2]
        to_goal = steps[:, -1, 1] == prompt[:, -1]
        return on_edge & chained & from_start & to_goal

    def mistakes(self, start, answer):
        prompt, K = start[:self.P], self.K
        edges = {tuple(e) for e in prompt[:-2].reshape(-1, 2).tolist()}
        steps = self.steps(answer.unsqueeze(0))[0].tolist()
        found = [f"step {i}: there is no edge {a},{b}" for i, (a, b) in enumerate(steps, 1)
                 if (a, b) not in edges and max(a, b) < K]
        found += [f"step {i + 1} leaves from {b[0]}, but step {i} arrived at {a[1]}"
                  for i, (a, b) in enumerate(zip(steps, steps[1:]), 1)
                  if a[1] != b[0] and max(a[1], b[0]) < K]
        if steps[0][0] != prompt[-2] and steps[0][0] < K:
            found.append(f"the path starts at {steps[0][0]}, not at {int(prompt[-2])}")
        if steps[-1][1] != prompt[-1] and steps[-1][1] < K:
            found.append(f"the path ends at {steps[-1][1]}, not at {int(prompt[-1])}")
        return found

    def read(self, text, name, limit=None):
        """A file's text -> [(start ids, answer ids or None, place)], no notes. Raises BadInput."""
        puzzles = []
        for line, place in read_paths(text, name, limit):
            try:
                prompt, answer = self.parse(line)
            except BadInput as e:
                raise BadInput(f"{place}: {e}") from None
            puzzles.append((prompt + [self.MASK] * self.A, answer, place))
        return puzzles, []

    def parse(self, text):
        """'edges goal_separator start,goal[=answer]' -> prompt ids, answer ids or None."""
        puzzle, equals, answer = text.partition("=")
        edges, separator, ends = puzzle.rpartition(self.goal_separator)
        if not separator:
            raise BadInput(f"no {self.goal_separator!r} before start,goal; expected {self.example}")
        edges = [self._nodes(e, 2, "edge") for e in edges.split(self.edge_separator)]
        if len(edges) != self.E:
            raise BadInput(f"{len(edges)} edges; this model was trained on graphs with {self.E}")
        start, goal = self._nodes(ends, 2, "start,goal")
        prompt = [t for e in edges for t in e] + [start, goal]
        if not self.path_exists(edges, start, goal):
            raise BadInput(f"there is no path of {self.path_nodes} nodes from {start} to {goal}")
        if not equals:
            return prompt, None
        answer = self.parse_answer(answer)
        if len(answer) != self.A:
            raise BadInput(f"the answer has {len(answer)} nodes; expected {self.A}")
        mistakes = self.mistakes(torch.tensor(prompt + answer), torch.tensor(answer))
        if mistakes:
            raise BadInput(f"the answer is wrong: {mistakes[0]}")
        return prompt, answer

    def _nodes(self, text, count, what):
        if not re.fullmatch(r"[0-9]+(,[0-9]+)*", text) or text.count(",") != count - 1:
            raise BadInput(f"{what} '{printable(text)}' is not {count} nodes with commas; "
                           f"expected {self.example}")
        words = text.split(",")
        if any(len(w) > 5 or int(w) >= self.labels for w in words):
            raise BadInput(f"{what} '{printable(text)}' has a node that this model does not know; "
                           f"legal: nodes 0-{self.labels - 1}")
        return [int(w) for w in words]  # the id of a node is its number

    def path_exists(self, edges, start, goal):
        """Is there a path from start to goal with path_nodes nodes? Searched layer by layer."""
        layer = {start}
        for _ in range(self.path_nodes - 1):
            layer = {b for a, b in edges if a in layer}
        return goal in layer

    def reference(self, start):
        """There is no reference: check() accepts every path from start to goal."""
        return None, "any path along the edges counts"

    def render(self, start, answer, before=None, color=False):
        """One line: the graph, then the answer. New nodes are green, ends of no edge are red."""
        edges = {tuple(e) for e in start[:self.P - 2].reshape(-1, 2).tolist()}
        steps = self.steps(answer.unsqueeze(0))[0].tolist()
        wrong = {tuple(s) for s in steps if max(s) < self.K} - edges
        ends = self.steps(torch.arange(self.A).unsqueeze(0))[0].tolist()  # tokens of each step
        red = {i for a, b in ends if (int(answer[a]), int(answer[b])) in wrong for i in (a, b)}
        shown = []
        for i, t in enumerate(answer.tolist()):
            word = str(t) if t < self.K else "."
            if color and t < self.K:
                style = 31 if i in red else 32 if before is not None and before[i] != t else 1
                word = f"\033[{style}m{word}\033[0m"
            shown.append(word)
        return f"{self.format(start)} = {self.join_answer(shown)}"

    def join_answer(self, words):
        return ",".join(words)

    def format(self, start, answer=None):
        prompt = [int(t) for t in start[:self.P]]
        pairs = [f"{a},{b}" for a, b in zip(prompt[0::2], prompt[1::2])]
        text = self.edge_separator.join(pairs[:-1]) + self.goal_separator + pairs[-1]
        if answer is None:
            return text
        return f"{text}={self.format_answer(answer)}"

    def format_answer(self, answer):
        return self.join_answer([str(int(t)) for t in answer])


class Star(Path):
    """Star graph G(d, l): d arms of l nodes share the start; the goal is the end of one arm.

    The answer is the path from start to goal, start included: l tokens. Only its second token is
    hard to predict (arXiv 2403.06963). Text: a,b|c,d|.../start,goal=path
    """
    example = "a,b|c,d|.../start,goal=path"

    def __init__(self, config):
        d, l = self.d, self.l = config.arms, config.path_len
        if config.labels < 1 + d * (l - 1):
            raise BadInput(f"--labels {config.labels} cannot name the {1 + d * (l - 1)} nodes "
                           f"of a star with {d} arms of {l}")
        super().__init__(config, "star", E=d * (l - 1), path_nodes=l, A=l,
                         edge_separator="|", goal_separator="/")

    def make_graph(self, nodes, generator):
        """nodes (B, labels): random names -> edges (B, E, 2), path (B, l)."""
        B = len(nodes)
        arms = nodes[:, 1:1 + self.d * (self.l - 1)].view(B, self.d, self.l - 1)
        start = nodes[:, :1, None].expand(B, self.d, 1)
        arms = torch.cat([start, arms], dim=2)  # (B, d, l)
        edges = torch.stack([arms[:, :, :-1], arms[:, :, 1:]], dim=3).flatten(1, 2)  # (B, E, 2)
        return edges, arms[:, 0]  # arm 0 is a random arm, because names are random

    def parse_answer(self, text):
        return self._nodes(text, self.l, "path")


class Planning(Path):
    """Minimal planning: two 6-node chains share one node (after arXiv 2410.14157).

    The start is the first node of one chain; the goal is the last node of either chain. At the
    shared node there are two continuations, and only the goal tells which is right. Planning
    distance: edges from the shared node to the goal (0..5). The answer is the 5 edges of the path,
    10 tokens. Text: a,b/c,d/...-start,goal=a,b/b,c/...
    """
    LENGTH = 6
    example = "a,b/c,d/...-start,goal=a,b/b,c/..."

    def __init__(self, config):
        if config.labels < 2 * self.LENGTH - 1:
            raise BadInput(f"--labels {config.labels} cannot name the {2 * self.LENGTH - 1} nodes "
                           "of a planning graph")
        E = 2 * (self.LENGTH - 1)
        super().__init__(config, "planning", E=E, path_nodes=self.LENGTH, A=E,
                         edge_separator="/", goal_separator="-")

    def make_graph(self, nodes, generator):
        """nodes (B, labels): random names -> edges (B, E, 2), path (B, l)."""
        B, L, device = len(nodes), self.LENGTH, nodes.device
        first = nodes[:, :L]
        second = nodes[:, L:2 * L - 1]  # one name fewer, as the shared node has one already
        # (B, 1): index of the shared node, the same on both chains
        cross = torch.randint(L, (B, 1), generator=generator, device=device)
        at = torch.arange(L, device=device).expand(B, L)
        # the second chain: L - 1 names of its own, in order, around the shared node
        own = second.gather(1, (at - (at > cross).long()).clamp(max=L - 2))
        second = torch.where(at == cross, first, own)
        # at the shared node the path changes to the other chain with probability 1/2
        change = torch.randint(2, (B, 1), generator=generator, device=device).bool()
        path = torch.where((at > cross) & change, second, first)
        chains = torch.stack([first, second], dim=1)  # (B, 2, L)
        return torch.stack([chains[:, :, :-1], chains[:, :, 1:]], dim=3).flatten(1, 2), path

    def distance(self, start):
        """Planning distance: edges from the shared node to the goal. start (B, S) -> (B,) int64."""
        prompt = start[:, :self.P]
        edges = prompt[:, :-2].reshape(len(prompt), self.E, 2)
        tails, heads = edges[:, :, 0], edges[:, :, 1]  # (B, E)
        leaves_fork = (tails.unsqueeze(1) == tails.unsqueeze(2)).sum(dim=2) > 1
        enters_join = (heads.unsqueeze(1) == heads.unsqueeze(2)).sum(dim=2) > 1
        shared = torch.where(leaves_fork.any(dim=1), (tails * leaves_fork).amax(dim=1),
                             (heads * enters_join).amax(dim=1))
        node, steps = prompt[:, -1].clone(), torch.zeros_like(prompt[:, -1])
        for _ in range(self.LENGTH):  # walk back to the shared node, the only one with two ways
            steps += (node != shared).long()
            back = (heads == node.unsqueeze(1)).long().argmax(dim=1)
            node = torch.where(node == shared, node, tails[torch.arange(len(prompt)), back])
        return steps

    def answer_from_path(self, path):
        return torch.stack([path[:, :-1], path[:, 1:]], dim=2).flatten(1)  # (B, 10)

    def steps(self, answer):
        return answer.reshape(len(answer), -1, 2)

    def parse_answer(self, text):
        return [t for e in text.split("/") for t in self._nodes(e, 2, "answer edge")]

    def join_answer(self, words):
        return "/".join(f"{a},{b}" for a, b in zip(words[0::2], words[1::2]))
