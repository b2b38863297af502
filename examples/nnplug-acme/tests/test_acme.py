"""nnplug's conformance suite. The package has to be installed."""

from nnplug.testing import parametrize_with_checks


@parametrize_with_checks("acme_net", "acme_loss", "acme_sampler", quick=True)
def test_conformance(check):
    check()
