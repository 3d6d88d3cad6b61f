"""Loggers of metrics: the console, a CSV file, TensorBoard, Weights & Biases, or several of them.

Importing this package loads neither torch nor tensorboard nor wandb; a logger imports its backend at its first
record.
"""

from layeredrl.loggers.console import ConsoleLogger, closing_table
from layeredrl.loggers.csv_file import CsvLogger
from layeredrl.loggers.logger import STEP_COLUMN, Logger, LoggerList
from layeredrl.loggers.tensorboard import TensorBoardLogger
from layeredrl.loggers.weights_and_biases import WandbLogger, WandbSettings

__all__ = [
    "STEP_COLUMN",
    "ConsoleLogger",
    "CsvLogger",
    "Logger",
    "LoggerList",
    "TensorBoardLogger",
    "WandbLogger",
    "WandbSettings",
    "closing_table",
]
