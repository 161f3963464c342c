"""What a student may skip: command line, checkpoints, speed, reports. Nothing about objectives.

Programs import this package before torch, because the line below must come first.
"""
import os

# Threads that wait for each other spin for microseconds and then sleep. With torch's default (they
# spin for milliseconds) two small trainings at once on two cores slow each other down six times;
# with sleeping at once a training alone is a quarter slower (LOG.md).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
