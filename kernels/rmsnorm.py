"""RMSNorm kernel; the torch twin is in rmsnorm_torch.py."""

from tp_harness.kernels.compat import Tensor, nisa, nki, nl
from tp_harness.kernels.tiling import P_MAX, broadcast_row


@nki.jit
def rmsnorm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Normalise each row by its root mean square and multiply by a learned scale.

    Dimensions:
        T: tokens, any number; H: hidden size, up to 6,144 in float32 (a row is held in one partition).

    Args:
        x: (T, H), HBM, float32 or bfloat16.
        scale: (H,), HBM, float32 or bfloat16.
        eps: float, added to the mean square.

    Returns:
        (T, H), shared HBM, type of x.

    Notes:
        Statistics are float32. The mean square must be inside rsqrt's documented range [2^-87, 2^97].
        The scale reaches all partitions by a matmul with a row of ones, which is exact.

    Pseudocode:
        for each 128 rows:
            mean = sum(x * x) / H
            y = (x * rsqrt(mean + eps)) * scale
    """
    T, H = x.shape
    out = nl.ndarray((T, H), dtype=x.dtype, buffer=nl.shared_hbm)
    row = nl.ndarray((1, H), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=row, src=scale)
    scales = nl.ndarray((P_MAX, H), dtype=nl.float32, buffer=nl.sbuf)
    broadcast_row(dst=scales, row=row)
    epsilon = nl.ndarray((P_MAX, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=epsilon, value=eps)
    for start in range(0, T, P_MAX):
        p = min(P_MAX, T - start)
        tile = nl.ndarray((p, H), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[start : start + p, :])
        squares = nl.ndarray((p, H), dtype=nl.float32, buffer=nl.sbuf)
        total = nl.ndarray((p, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(
            dst=squares,
            op=nl.square,
            data=tile,
            reduce_op=nl.add,
            reduce_res=total,
            reduce_cmd=nisa.reduce_cmd.reset_reduce,
        )
        inverse = nl.ndarray((p, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=inverse, op=nl.rsqrt, data=total, scale=1.0 / H, bias=epsilon[0:p, :])
        y = nl.ndarray((p, H), dtype=x.dtype, buffer=nl.sbuf)
        nisa.scalar_tensor_tensor(
            dst=y, data=tile, op0=nl.multiply, operand0=inverse, op1=nl.multiply, operand1=scales[0:p, :]
        )
        nisa.dma_copy(dst=out[start : start + p, :], src=y)
    return out
