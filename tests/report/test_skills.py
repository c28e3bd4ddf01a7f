"""Pictures of a search by natural niches: skills, diversity, and the mixture of an individual."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.report.figures import plot_diversity_history, plot_pieces, plot_skill_map
from evomerge.report.page import render_report
from evomerge.run.skill_map import skill_map
from evomerge.run.view import Run
from evomerge.search.skills import shares
from evomerge.spaces import PiecewiseSpace
from tests.report.conftest import DIGITS, LETTERS, MakeRun


@pytest.fixture(scope="module")
def niches(make_run: MakeRun) -> Run:
    search = {"searcher": "natural_niches", "options": {"archive": 5}}
    return make_run(LETTERS, DIGITS, evaluations=20, space={"kind": "piecewise"}, search=search)


def test_the_skill_map_has_every_members_share_of_every_sample(niches: Run) -> None:
    skills = skill_map(niches)
    figure = plot_skill_map(skills)
    cells = np.array(figure.data[0].z)
    assert cells.shape == skills.scores.shape
    # Columns are in another order; what a member has in all is the same.
    assert np.allclose(cells.sum(axis=1), shares(skills.scores).sum(axis=1), atol=0.05)
    assert list(figure.layout.yaxis.ticktext) == [str(member) for member in skills.members]
    assert len(figure.layout.shapes) == skills.cluster.max()


def test_diversity_is_drawn_by_evaluation(niches: Run) -> None:
    skills = skill_map(niches)
    coverage, entropy = plot_diversity_history(skills).data
    assert list(coverage.x) == skills.history[:, 0].tolist()
    assert np.allclose(coverage.y, skills.history[:, 1], atol=1e-4)
    assert np.allclose(entropy.y, skills.history[:, 2], atol=1e-4)


def test_a_mixture_is_drawn_piece_by_piece(niches: Run) -> None:
    assert isinstance(niches.space, PiecewiseSpace)
    best = niches.best()
    assert best is not None
    individual = niches.space.individual(niches.state.asked[best].genome)
    figure = plot_pieces(niches.space, individual, "mixture")
    assert [trace.name for trace in figure.data] == ["base", "letters", "digits"]
    for row, trace in enumerate(figure.data):
        assert list(trace.y)[:-1] == individual.weights[:, row].tolist()
        assert trace.x[-1] == pytest.approx(sum(part.size for part in niches.space.chromosomes) / 1e6)


def test_the_report_shows_them_and_no_route(niches: Run) -> None:
    page = render_report(niches)
    for key in ("skill-map", "diversity", "mixture"):
        assert f'id="{key}"' in page
    assert 'id="route-population"' not in page
    assert 'id="coefficients"' not in page
