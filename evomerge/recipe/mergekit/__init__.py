"""mergekit's documents: its merge files in and out, and the genomes of mergekit-evolve."""

from evomerge.recipe.mergekit.document import is_mergekit
from evomerge.recipe.mergekit.exporting import Exported, export_mergekit
from evomerge.recipe.mergekit.facts import Look, ModelFacts
from evomerge.recipe.mergekit.genome import ImportedSearch, import_genome, is_genome, needs_depth
from evomerge.recipe.mergekit.importing import Imported, import_mergekit

__all__ = [
    "Exported",
    "Imported",
    "ImportedSearch",
    "Look",
    "ModelFacts",
    "export_mergekit",
    "import_genome",
    "import_mergekit",
    "is_genome",
    "is_mergekit",
    "needs_depth",
]
