"""DiffuSpec: whatever is drafted, the answer is next-token decoding's."""
import itertools
import json

import pytest
import torch
from boards import BOARDS, check_alone, generator
from conftest import Oracle, empty, keys_for, random_model, task_config

from data import make_task
from diffusion import independent, joint
from errors import BadInput
from sample import decode_next_token
from studies.diffuspec import best_path, count_bigrams, diffuspec, main


def starts(name, count):
    task = make_task(task_config(name))
    return task, empty(task, count) if name == "sudoku-gen" else task.test_set(count)[0]


@pytest.mark.parametrize("temperature", (0.0, 1.0))
@pytest.mark.parametrize("name, k, beam, mix, ranks", (
    ("star", 3, 1, 1.0, joint), ("planning", 4, 3, 0.5, joint), ("planning", 99, 2, 1.0, joint),
    ("sudoku-gen", 0, 3, 0.5, joint), ("sudoku-gen", 5, 3, 0.5, independent)))
def test_the_answer_is_the_verifiers(name, k, beam, mix, ranks, temperature):
    """Two models that have nothing to do with each other; samples advance at different speeds."""
    task, start = starts(name, 100)
    drafter, verifier = random_model(task, seed=1), random_model(task, seed=2)
    keys = keys_for(start)
    expected, _ = decode_next_token(verifier, task, "ar", start, temperature, keys)
    bigram = count_bigrams(task, 0, "cpu", 100) if mix < 1 else None
    tokens, stats = check_alone(
        lambda rows: diffuspec(drafter, verifier, task, ranks, start[rows], keys[rows], temperature,
                               k, beam, mix, bigram),
        (7,), ("nfe", "draft_nfe", "tokens", "accepted"))
    assert torch.equal(tokens, expected)
    if k == 0:  # no drafts: the whole prefix at every step
        assert (stats["nfe"] == task.A).all() and not stats["draft_nfe"].any()
        assert (stats["tokens"] == sum(range(task.P, task.S))).all()


@pytest.mark.parametrize("k, rounds", ((99, 1), (4, 2), (2, 4)))
def test_what_a_perfect_drafter_costs(k, rounds):
    """Planning, A = 10 cells: each round keeps k drafts and a token of the verifier's."""
    task, start = starts("planning", 20)
    verifier, keys = random_model(task), keys_for(start)
    answers = decode_next_token(verifier, task, "ar", start, 0.0, keys)[0][:, task.P:]
    _, stats = diffuspec(Oracle(task, start, answers), verifier, task, joint, start, keys, 0.0, k)
    drafts = 3 if k == 2 else rounds  # 3 + 3 + 3 and the last token, which is not drafted
    assert (stats["nfe"] == rounds + drafts).all() and (stats["draft_nfe"] == drafts).all()
    assert torch.allclose(stats["accepted"], torch.tensor(10 / rounds).double())
    seen, have = 0, 0  # pairs of the verifier: prefix and draft
    for _ in range(rounds):
        seen += task.P + have + min(k, 9 - have)
        have += min(k, 9 - have) + 1
    assert (stats["tokens"] == seen + drafts * task.S).all()


def test_the_beam_finds_the_best_path():
    """Enough beams: against all 4^3 paths. All symbols are offered at mass 2."""
    R, J, K, g = 5, 3, 4, generator()
    logits = torch.randn(R, J, K, generator=g)
    bigram = torch.randn(6, K, generator=g).log_softmax(dim=1)
    before = torch.tensor([5, 4, 3, 0, 1])
    found = best_path(logits, 0.0, None, 64, 0.3, bigram, before, mass=2.0)
    scores = logits.log_softmax(dim=-1)
    for r in range(R):
        def value(path):
            steps = zip((int(before[r]), *path), path)
            drafter = sum(scores[r, j, v] for j, v in enumerate(path))
            return 0.3 * drafter + 0.7 * sum(bigram[a, b] for a, b in steps)
        best = max(itertools.product(range(K), repeat=J), key=value)
        assert tuple(found[r].tolist()) == best
    likeliest = logits.argmax(dim=-1)
    assert not torch.equal(found, likeliest)  # the bigram has a say
    assert torch.equal(best_path(logits, 0.0, None, 3, 0.3, bigram, before, mass=0.01), likeliest)
    assert torch.equal(best_path(logits, 0.0, None, 3, 1.0, bigram, before), likeliest)


def test_bigrams_are_counted():
    """In a row of a board no digit follows itself: only from one row to the next."""
    p = count_bigrams(BOARDS, 0, "cpu").exp()
    assert p.shape == (BOARDS.V, BOARDS.K) and torch.allclose(p.sum(dim=1), torch.ones(BOARDS.V))
    itself = p[:BOARDS.K].diagonal()
    assert (itself < 0.15).all() and (itself > 0.02).all()
    assert torch.allclose(p[BOARDS.BOS], torch.tensor(0.25), atol=0.05)


def test_the_command_line(tiny_checkpoints, capsys):
    files = {name: str(file) for name, file in tiny_checkpoints.items()}
    assert not main(["--draft", files["mdm"], "--verify", files["ar"], "--num", "9", "--k", "6",
                     "--device", "cpu"])
    report = json.loads(capsys.readouterr().out)
    assert report["equal_to_plain"] == report["num"] == 9 and report["plain_nfe"] == 16
    assert report["temperature"] == 1.0 and 1 <= report["accepted"] <= 7
    for draft, verify, words in (("ar", "ar", "--draft"), ("mdm", "mtp", "--verify"),
                                 ("mdm", "prompt9", "are of different tasks")):
        with pytest.raises(BadInput) as e:
            main(["--draft", files[draft], "--verify", files[verify], "--device", "cpu"])
        assert words in str(e.value) and "\n" not in str(e.value)
