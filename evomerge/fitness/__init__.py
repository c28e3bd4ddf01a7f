"""What is measured, and how: suites of lm-eval tasks, objectives and constraints, engines, the scorer.

Importing this package imports neither torch nor lm-eval; both come with the first task or model.
"""

from evomerge.fitness.config import EngineConfig, FitnessConfig, SuiteConfig
from evomerge.fitness.engines import EngineChoice, Workplace, check_engine, choose_engine
from evomerge.fitness.objectives import Objectives, ObjectiveValue
from evomerge.fitness.scorer import ScorerSpec, create_scorer
from evomerge.fitness.suite import Suite, check_fitness, load_suite
from evomerge.fitness.types import SPLITS, Engine, Evaluation, Minibatch, Scorer, Split

__all__ = [
    "SPLITS",
    "Engine",
    "EngineChoice",
    "EngineConfig",
    "Evaluation",
    "FitnessConfig",
    "Minibatch",
    "ObjectiveValue",
    "Objectives",
    "Scorer",
    "ScorerSpec",
    "Split",
    "Suite",
    "SuiteConfig",
    "Workplace",
    "check_engine",
    "check_fitness",
    "choose_engine",
    "create_scorer",
    "load_suite",
]
