"""A Case of a model family's own modules, of which more is known than of a user's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from .case import Case


@dataclass(frozen=True, kw_only=True)
class FamilyCase(Case):
    """The modules compute in their input's dtype, keep nothing between calls, and communicate by their group alone.

    So they are made without memory, mapped weights stay mapped, and one reference serves every dtype.
    """

    on_meta: ClassVar[bool] = True
    may_keep_state: ClassVar[bool] = False
    may_use_torch_distributed: ClassVar[bool] = False
    watches_routers: ClassVar[bool] = False
    rows_are_tokens: ClassVar[bool] = True

    def reference_in(self, reference: nn.Module, dtype: torch.dtype) -> nn.Module:
        """The reference itself."""
        del dtype
        return reference

    @contextmanager
    def computing_in(self, module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
        """Where inputs are token ids, the embedding's output sets the dtype."""
        embeddings = [child for child in module.modules() if isinstance(child, nn.Embedding)]
        hooks = [each.register_forward_hook(lambda _module, _inputs, output: output.to(dtype)) for each in embeddings]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
