"""How many workers a search can keep busy: most searchers bound what they have in flight."""

from __future__ import annotations

from evomerge.run.config import RunConfig
from evomerge.search import Searcher


def idle_workers(config: RunConfig, fresh: Searcher) -> str | None:
    """Return one sentence where a search begins with fewer candidates at once than there are workers, else None.

    Args:
        config: the search file.
        fresh: its searcher, at its start; it is asked, so that it can serve nothing else afterwards.
    """
    workers = 1 if config.executor.kind == "inline" else config.executor.workers
    if workers == 1:
        return None
    most = len(fresh.ask(workers))
    if most == workers:
        return None
    return (
        f"search: {config.search.searcher} has at most {most} candidates in flight, which keeps {most} of {workers} "
        "workers busy; raise its population, or let a portfolio take turns (`together: true`) with a searcher that "
        "has no limit, such as natural_niches or nsga_ii"
    )
