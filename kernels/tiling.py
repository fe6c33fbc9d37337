"""Parts that several kernels are made of: tile counts, transposed loads, a row copied to all partitions.

They are NKI code (compiled in line) and keep the same rules as the kernels.
"""

from tp_harness.kernels.compat import DType, Tensor, nisa, nl

P_MAX = 128
BANK_FP32 = 512
TRANSPOSES_PER_BANK = 4


def num_tiles(size: int, tile: int) -> int:
    """Return how many tiles cover `size`."""
    return (size + tile - 1) // tile


def ones_row(dtype: DType) -> Tensor:
    """Return a (1, 128) SBUF tile of ones; as a stationary operand it copies a row to all partitions."""
    ones = nl.ndarray((1, P_MAX), dtype=dtype, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    return ones


def broadcast_row(dst: Tensor, row: Tensor) -> None:
    """Copy a (1, F) float32 SBUF tile to every partition of the (P, F) SBUF tile dst: ones.T @ row, exact."""
    partitions = dst.shape[0]
    size = row.shape[1]
    ones = ones_row(row.dtype)
    for start in range(0, size, BANK_FP32):
        width = min(BANK_FP32, size - start)
        copies = nl.ndarray((partitions, width), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(
            dst=copies,
            stationary=ones[0:1, 0:partitions],
            moving=row[0:1, start : start + width],
            accumulate=False,
        )
        nisa.tensor_copy(dst=dst[:, start : start + width], src=copies)


def transpose_rows(dst: Tensor, data: Tensor, column: int) -> None:
    """Transpose a (rows, K) SBUF tile into dst (128, tiles of K, columns), at `column`.

    Element k of a row goes to partition k % 128 of tile k // 128. Full tiles go four at a time, which is one
    PSUM bank of float32; the rest of K follows on its own partitions.
    """
    rows = data.shape[0]
    size = data.shape[1]
    full = size // P_MAX
    for first in range(0, full, TRANSPOSES_PER_BANK):
        count = min(TRANSPOSES_PER_BANK, full - first)
        turned = nl.ndarray((P_MAX, count, rows), dtype=data.dtype, buffer=nl.psum)
        for i in range(count):
            start = (first + i) * P_MAX
            nisa.nc_transpose(dst=turned[:, i, :], data=data[:, start : start + P_MAX], engine=nisa.engine.tensor)
        nisa.tensor_copy(dst=dst[:, first : first + count, column : column + rows], src=turned)
    rest = size - full * P_MAX
    if rest > 0:
        last = nl.ndarray((rest, rows), dtype=data.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=last, data=data[:, full * P_MAX : size], engine=nisa.engine.tensor)
        nisa.tensor_copy(dst=dst[0:rest, full, column : column + rows], src=last)


def load_transposed(source: Tensor, first: int, count: int) -> Tensor:
    """Load rows first .. first + count of a (rows, K) HBM tensor as an SBUF tile (128, tiles of K, count)."""
    size = source.shape[1]
    turned = nl.ndarray((P_MAX, num_tiles(size, P_MAX), count), dtype=source.dtype, buffer=nl.sbuf)
    for start in range(0, count, P_MAX):
        rows = min(P_MAX, count - start)
        tile = nl.ndarray((rows, size), dtype=source.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=source[first + start : first + start + rows, :])
        transpose_rows(dst=turned, data=tile, column=start)
    return turned


def matmul_tiles(dst: Tensor, stationary: Tensor, moving: Tensor, size: int, column: int, width: int) -> None:
    """Write the sum over all tiles of K of stationary.T @ moving to the PSUM tile dst.

    `stationary` and `moving` are (128, tiles of K, columns) as load_transposed makes them, `size` is K, and
    `column` and `width` select the stationary columns.
    """
    for k in range(num_tiles(size, P_MAX)):
        depth = min(P_MAX, size - k * P_MAX)
        nisa.nc_matmul(
            dst=dst,
            stationary=stationary[0:depth, k, column : column + width],
            moving=moving[0:depth, k, :],
            accumulate=(k > 0),
        )
