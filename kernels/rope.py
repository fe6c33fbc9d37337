"""Rotary embedding kernel; the torch twin is in rope_torch.py."""

from tp_harness.kernels.compat import Tensor, nisa, nki, nl
from tp_harness.kernels.tiling import P_MAX


@nki.jit
def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of every head by its token's angles.

    Dimensions:
        T: tokens, any number; N: heads of this rank; D: head size, even; N * D up to 8,192 in float32.

    Args:
        x: (T, N, D), HBM, float32 or bfloat16.
        cos, sin: (T, D / 2), HBM, float32 or bfloat16; row t belongs to token t, YaRN's factor included.

    Returns:
        (T, N, D), shared HBM, type of x.

    Notes:
        Products and sums are float32; the result is rounded once. In float32 it equals torch bit for bit.
        The tables are read per token, so positions need not be consecutive.

    Pseudocode:
        a, b = halves of x
        y = concat(a * cos - b * sin, b * cos + a * sin)
    """
    T, N, D = x.shape
    half = D // 2
    out = nl.ndarray((T, N, D), dtype=x.dtype, buffer=nl.shared_hbm)
    for start in range(0, T, P_MAX):
        p = min(P_MAX, T - start)
        tile = nl.ndarray((p, N, D), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[start : start + p, :, :])
        c = nl.ndarray((p, half), dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=c, src=cos[start : start + p, :])
        s = nl.ndarray((p, half), dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=s, src=sin[start : start + p, :])
        y = nl.ndarray((p, N, D), dtype=x.dtype, buffer=nl.sbuf)
        along = nl.ndarray((p, half), dtype=nl.float32, buffer=nl.sbuf)
        across = nl.ndarray((p, half), dtype=nl.float32, buffer=nl.sbuf)
        for n in range(N):
            a = tile[:, n, 0:half]
            b = tile[:, n, half:D]
            nisa.tensor_tensor(dst=along, data1=a, data2=c, op=nl.multiply)
            nisa.tensor_tensor(dst=across, data1=b, data2=s, op=nl.multiply)
            nisa.tensor_tensor(dst=y[:, n, 0:half], data1=along, data2=across, op=nl.subtract)
            nisa.tensor_tensor(dst=along, data1=b, data2=c, op=nl.multiply)
            nisa.tensor_tensor(dst=across, data1=a, data2=s, op=nl.multiply)
            nisa.tensor_tensor(dst=y[:, n, half:D], data1=along, data2=across, op=nl.add)
        nisa.dma_copy(dst=out[start : start + p, :, :], src=y)
    return out
