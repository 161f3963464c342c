"""What a student may skip: command line, checkpoints, speed, reports. Nothing about objectives.

Programs import this package before torch, because both lines below must come first.
"""
import os

# Threads that wait for each other sleep instead of spinning. With spinning, two small trainings at
# once on two cores slow each other down six to thirty times, with sleeping hardly at all; alone
# sleeping costs a fifth (LOG.md).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
