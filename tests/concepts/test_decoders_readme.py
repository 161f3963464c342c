"""The worked example of decoders/README.md is a decoder: at its null knob plain, else faster."""
import re
from pathlib import Path

import torch
from conftest import keys_for, random_model, task_config

import decoders
from data import make_task
from objectives import Dials

README = Path(decoders.__file__).with_name("README.md").read_text(encoding="utf-8")


def test_the_example_works_as_it_stands(data_dir, monkeypatch):
    example = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    namespace = {}
    exec(example, namespace)
    row = namespace["DECODERS"]["ramp"]
    monkeypatch.setitem(decoders.DECODERS, "ramp", row)
    task = make_task(task_config("sudoku", data_dir=data_dir))
    start, _ = task.test_set(6)
    model, done = random_model(task), {}
    for name, knobs in (("plain", {"k": 1, "order": "confidence"}), ("ramp", row.null),
                        ("ramp", {"share": 0.5})):
        dials, history = Dials("", 1, 0, 1, 1.0, decoder=name, knobs=knobs), []
        _, stats = decoders.decode(model, task, "mdm", start, dials, keys_for(start), history)
        boards = torch.stack([step.tokens for step in history])
        done[name, knobs.get("share")] = boards, stats["nfe"]
    assert torch.equal(done["plain", None][0], done["ramp", 0.0][0])
    unknown = task.blanks(start).sum(dim=1).tolist()
    assert done["ramp", 0.5][1].tolist() == [n.bit_length() for n in unknown]  # halves, rounded up
    assert "ramp: the ceil" in decoders.listing()


def test_the_table_of_files_names_every_file_that_is_here():
    named = set(re.findall(r"\w+\.py", README[README.index("## Files"):]))
    here = {f.name for f in Path(decoders.__file__).parent.glob("*.py")} - {"__init__.py"}
    assert not here - named
    assert len(README.encode()) <= 5 * 1024
