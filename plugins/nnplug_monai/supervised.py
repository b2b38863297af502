"""The deep-supervision switch that the networks with several outputs share."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


class Supervised(nn.Module):
    """A network whose extra outputs can be switched on and off at any time.

    MONAI's classes decide by ``self.training`` or by how they were built, and some lack the heads without deep
    supervision. Here the heads always exist, so that the state dict is one, and only ``deep_supervision`` decides:

    * True: ``forward`` returns a list, full resolution first;
    * False: it returns the first of them, and the other heads are frozen. They would get no gradient, and DDP stops at
      a trainable parameter without one.
    """

    _is_supervised = False

    def extra_heads(self) -> Iterable[nn.Module]:
        """The layers that only the extra outputs use."""
        raise NotImplementedError

    @property
    def deep_supervision(self) -> bool:
        """Whether ``forward`` returns every output."""
        return self._is_supervised

    @deep_supervision.setter
    def deep_supervision(self, enabled: bool) -> None:
        self._is_supervised = bool(enabled)
        for head in self.extra_heads():
            head.requires_grad_(self._is_supervised)
