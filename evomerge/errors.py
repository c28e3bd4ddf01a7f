"""Every error that evomerge raises on purpose.

::

    EvomergeError                    exit code
    ├── ConfigError (ValueError)     2   what you wrote is wrong: search file, suite, expression, option
    │   └── RecipeError              2   a recipe that no set of sources could satisfy
    ├── SourceError (ValueError)     2   a source model cannot be read or does not fit the others
    ├── NotBuiltError                2   the document is right, but this version cannot build it yet
    ├── StateError (RuntimeError)    2   a run folder that cannot be used as it stands
    │   ├── JournalError             2   the journal is broken, and where
    │   └── RunHeldError             3   another coordinator holds the run
    ├── StorageError (OSError)       1   the disk refused a write; nothing journaled is lost
    ├── InfeasibleError (ValueError) -   this recipe gives no working model: a result, not a failure
    └── EvaluationError              1   scoring failed for a reason that is not the recipe's
        └── WorkerLostError          1   the worker died or stopped answering

The text of each is one sentence: what is wrong, where, what was expected, what to do.
"""

from __future__ import annotations


class EvomergeError(Exception):
    """The base of every error raised on purpose; `exit_code` is what the command line returns."""

    exit_code: int = 1


class ConfigError(EvomergeError, ValueError):
    """A document or option that the user wrote is wrong."""

    exit_code = 2


class RecipeError(ConfigError):
    """A recipe is inconsistent in itself."""


class SourceError(EvomergeError, ValueError):
    """A source model is missing, unreadable, unsafe, or does not fit the other sources."""

    exit_code = 2


class NotBuiltError(EvomergeError, NotImplementedError):
    """A valid document asks for something that this version cannot build yet."""

    exit_code = 2


class StateError(EvomergeError, RuntimeError):
    """A run folder cannot be used as it stands."""

    exit_code = 2


class JournalError(StateError):
    """The journal is broken; the text names file and line."""


class RunHeldError(StateError):
    """Another coordinator holds the lease of this run."""

    exit_code = 3


class StorageError(EvomergeError, OSError):
    """The file system refused a write, for instance because the disk is full."""


class InfeasibleError(EvomergeError, ValueError):
    """A recipe gives no working model (non-finite weights or logits, degenerate output)."""


class EvaluationError(EvomergeError, RuntimeError):
    """Scoring failed for a reason that is not the recipe's; trying again may help."""


class WorkerLostError(EvaluationError):
    """The worker that held the lease died or stopped answering."""
