"""What a student may skip: command line, checkpoints, speed, reports. Nothing about objectives.

Programs import this package before torch, because torch reads the variable below when it starts.
"""
import os

# Waiting threads spin for microseconds, then sleep. With torch's default (milliseconds) two small
# trainings on two cores slow each other down six times; without spinning one training alone is a
# quarter slower (LOG.md).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
