"""Studies: what trains something of its own beside the five objectives, or measures the decoders.

Each file with a command in its docstring is a program; a reader may skip them all. They import the
sampler, the trainer and decoders/; nothing of those imports a study.
"""
