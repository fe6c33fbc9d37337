"""NKI kernels for gpt-oss on Trn1, each beside its torch twin, and what runs and checks them on a CPU.

`run(name, *tensors, **options)` calls a kernel on torch tensors; `registry` lists the kernels.
"""

from __future__ import annotations

from typing import Any


def run(name: str, *args: Any, **kwargs: Any) -> Any:
    """Run a kernel on torch tensors; see `tp_harness.kernels.call.run`."""
    # Imported late, so that the interpreter can be used without torch.
    from tp_harness.kernels import call  # noqa: PLC0415

    return call.run(name, *args, **kwargs)
