"""The table of tasks. What a task is: data/task.py."""
from data.path import Planning, Star
from data.sudoku import Sudoku
from data.task import Task, cached

__all__ = ["TASKS", "Task", "cached", "make_task"]
# name -> class; each is made from any object with the task fields of config.Config
TASKS = {"sudoku-gen": Sudoku, "sudoku": Sudoku, "star": Star, "planning": Planning}


def make_task(config):
    """config: any object with the task fields of config.Config (task, board_size, arms, ...)."""
    return TASKS[config.task](config)
