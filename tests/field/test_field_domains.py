"""The networks of other domains: each is built, normalises, and keeps to its shape."""

from __future__ import annotations

import pytest
from coverage_report.architectures import ARCHITECTURES, Architecture
from coverage_report.domains import LISTED, builders
from coverage_report.trained import batchnorms

torch = pytest.importorskip("torch")
OWN = [architecture for architecture in ARCHITECTURES if architecture.source == "own"]


def test_every_network_is_listed_once() -> None:
    assert {architecture.name for architecture in OWN} == set(builders())
    assert len(OWN) >= 20
    assert len(LISTED) >= 8


@pytest.mark.parametrize("architecture", OWN, ids=lambda architecture: architecture.name)
def test_it_runs_and_normalises(architecture: Architecture) -> None:
    network = architecture.build()
    assert not network.training
    assert batchnorms(network)
    with torch.no_grad():
        (result, again) = (network(torch.ones(architecture.shape)) for _ in range(2))
    assert torch.isfinite(result).all()
    assert torch.equal(result, again)
