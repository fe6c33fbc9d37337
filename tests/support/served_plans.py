"""The family's components under another plan than tp."""

from __future__ import annotations

from typing import Any

import pytest

from tp_harness.config.model import NeuronConfig
from tp_harness.models.gpt_oss import GptOss
from tp_harness.models.gpt_oss.config import InferenceConfig


def run_by(patch: pytest.MonkeyPatch, plan: str) -> None:
    """Run every component by this plan, for as long as the patch holds."""

    def at(_self: GptOss, model: Any, *, batch: int, seq: int, dtype: str, tp: int) -> InferenceConfig:
        run = NeuronConfig(batch_size=batch, seq_len=seq, torch_dtype=dtype, tp_degree=tp, plan=plan)
        return InferenceConfig.of(model, run)

    patch.setattr(GptOss, "at", at)
