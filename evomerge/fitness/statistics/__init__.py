"""Measuring models on calibration texts: diagonal Fisher information, and Gram matrices of linear layers' inputs."""

from __future__ import annotations

from evomerge.fitness.statistics.measure import MeasureConfig, Written, measure, write_moments
from evomerge.fitness.statistics.texts import Calibration, encode, read_texts

__all__ = ["Calibration", "MeasureConfig", "Written", "encode", "measure", "read_texts", "write_moments"]
