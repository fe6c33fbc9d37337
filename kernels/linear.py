"""Tiled linear kernels (qkv, attention output, unembedding); the torch twins are in linear_torch.py."""

from tp_harness.kernels.compat import Tensor, nisa, nki, nl
from tp_harness.kernels.tiling import P_MAX, load_transposed, matmul_tiles, ones_row

TOKENS = 256
FEATURES = 256


def _multiply(x: Tensor, weight: Tensor, bias: Tensor, has_bias: bool) -> Tensor:
    """Fill a new (T, N) tensor with x @ weight.T, and the bias if there is one."""
    T, K = x.shape
    N = weight.shape[0]
    out = nl.ndarray((T, N), dtype=x.dtype, buffer=nl.shared_hbm)
    ones = ones_row(dtype=weight.dtype)
    for first in range(0, T, TOKENS):
        tokens = min(TOKENS, T - first)
        xT = load_transposed(source=x, first=first, count=tokens)
        for n in range(0, N, FEATURES):
            width = min(FEATURES, N - n)
            wT = load_transposed(source=weight, first=n, count=width)
            for row in range(0, tokens, P_MAX):
                p = min(P_MAX, tokens - row)
                total = nl.ndarray((p, width), dtype=nl.float32, buffer=nl.psum)
                matmul_tiles(dst=total, stationary=xT, moving=wT, size=K, column=row, width=p)
                if has_bias:
                    b = nl.ndarray((1, width), dtype=weight.dtype, buffer=nl.sbuf)
                    nisa.dma_copy(dst=b, src=bias[n : n + width])
                    nisa.nc_matmul(dst=total, stationary=ones[0:1, 0:p], moving=b, accumulate=True)
                y = nl.ndarray((p, width), dtype=x.dtype, buffer=nl.sbuf)
                nisa.tensor_copy(dst=y, src=total)
                nisa.dma_copy(dst=out[first + row : first + row + p, n : n + width], src=y)
    return out


@nki.jit
def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute x @ weight.T + bias for this rank's rows (or columns) of a projection.

    Dimensions:
        T: tokens, any number; K: input features of this rank, up to 5,120 in float32; N: output features.

    Args:
        x: (T, K), HBM, float32 or bfloat16.
        weight: (N, K), HBM, type of x.
        bias: (N,), HBM, type of x.

    Returns:
        (T, N), shared HBM, type of x.

    Notes:
        Both operands are transposed on Tensor Engine, as K has to lie on the partitions. Products are summed
        in float32 in PSUM, 128 of K at a time; the bias is one more step with K = 1.
        A row-parallel projection is a partial sum: use linear_no_bias and add the bias after the all-reduce.

    Pseudocode:
        for each 256 tokens, 256 features, 128 tokens of these:
            psum = sum over tiles of K: xT_tile.T @ wT_tile
            psum += ones.T @ bias
            y = psum
    """
    return _multiply(x=x, weight=weight, bias=bias, has_bias=True)


@nki.jit
def linear_no_bias(x: Tensor, weight: Tensor) -> Tensor:
    """Compute x @ weight.T for this rank's rows (or columns) of a projection.

    Dimensions:
        T: tokens, any number; K: input features of this rank, up to 5,120 in float32; N: output features.

    Args:
        x: (T, K), HBM, float32 or bfloat16.
        weight: (N, K), HBM, type of x.

    Returns:
        (T, N), shared HBM, type of x.

    Notes:
        As `linear`, without the bias step.

    Pseudocode:
        y = sum over tiles of K: xT_tile.T @ wT_tile
    """
    return _multiply(x=x, weight=weight, bias=weight, has_bias=False)
