"""Expert MLP kernel (gate/up, clamped SwiGLU, down, weighting); the torch twin is in expert_mlp_torch.py."""

from tp_harness.kernels.compat import Tensor, nisa, nki, nl
from tp_harness.kernels.tiling import P_MAX, load_transposed, matmul_tiles, num_tiles, ones_row

TOKENS = 256
FEATURES = 256


@nki.jit
def expert_mlp(
    x: Tensor,
    affinities: Tensor,
    mlp1_weight: Tensor,
    mlp1_bias: Tensor,
    mlp2_weight: Tensor,
    mlp2_bias: Tensor,
    alpha: float,
    limit: float,
    bias_share: float,
) -> Tensor:
    """Compute this rank's partial sum of the mixture of experts.

    Dimensions:
        T: tokens, any number; H: hidden size, up to 3,072 in float32; E: experts;
        I: intermediate size of this rank, up to 3,072 in float32.

    Args:
        x: (T, H), HBM, float32 or bfloat16.
        affinities: (T, E), HBM, float32, as the router returns them: 0 for experts that were not chosen.
        mlp1_weight: (E, 2 * I, H), HBM, type of x; row 2 * j is gate j, row 2 * j + 1 is up j.
        mlp1_bias: (E, 2 * I), HBM, type of x, in the same order.
        mlp2_weight: (E, H, I), HBM, type of x.
        mlp2_bias: (E, H), HBM, type of x: whole on every rank.
        alpha: float, slope of the sigmoid.
        limit: float, clamp of gate (above) and up (both sides).
        bias_share: float, the share of mlp2_bias this rank adds: 1 / tp on all ranks.

    Returns:
        (T, H), shared HBM, type of x: the sum over the ranks is the layer's output.

    Notes:
        All experts run for all tokens and are weighted; what is not chosen has weight 0. No index is read at
        run time. The bias is multiplied by bias_share, the same number on all ranks, so that the code (and a
        compiled graph) does not depend on the rank; for tp a power of two the shares are exact.
        Gate and up rows are fetched apart by the DMA's stride of two rows in HBM. The activation is rounded
        to the type of x for the down projection; sums over I and over experts are float32.

    Pseudocode:
        for each expert e:
            gate, up = split(x @ mlp1_weight[e].T + mlp1_bias[e])
            gate = min(gate, limit); up = max(min(up, limit), -limit)
            h = gate * sigmoid(alpha * gate) * (up + 1)
            y += affinities[:, e] * (h @ mlp2_weight[e].T + bias_share * mlp2_bias[e])
    """
    T, H = x.shape
    E = affinities.shape[1]
    size = mlp2_weight.shape[2]
    out = nl.ndarray((T, H), dtype=x.dtype, buffer=nl.shared_hbm)
    for first in range(0, T, TOKENS):
        tokens = min(TOKENS, T - first)
        xT = load_transposed(source=x, first=first, count=tokens)
        hT = nl.ndarray((P_MAX, num_tiles(size, P_MAX), tokens), dtype=x.dtype, buffer=nl.sbuf)
        y = nl.ndarray((P_MAX, num_tiles(tokens, P_MAX), H), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=y, value=0.0)
        shares = nl.ndarray((P_MAX, num_tiles(tokens, P_MAX), E), dtype=nl.float32, buffer=nl.sbuf)
        for row in range(0, tokens, P_MAX):
            p = min(P_MAX, tokens - row)
            nisa.dma_copy(dst=shares[0:p, row // P_MAX, :], src=affinities[first + row : first + row + p, :])
        for e in range(E):
            _gate_up(hT=hT, xT=xT, weight=mlp1_weight[e], bias=mlp1_bias[e], H=H, alpha=alpha, limit=limit)
            _down(
                y=y,
                hT=hT,
                weight=mlp2_weight[e],
                bias=mlp2_bias[e],
                share=shares[:, :, e : e + 1],
                bias_share=bias_share,
            )
        for row in range(0, tokens, P_MAX):
            p = min(P_MAX, tokens - row)
            nisa.dma_copy(dst=out[first + row : first + row + p, :], src=y[0:p, row // P_MAX, :])
    return out


def _gate_up(hT: Tensor, xT: Tensor, weight: Tensor, bias: Tensor, H: int, alpha: float, limit: float) -> None:
    """Fill hT (128, tiles of I, tokens) with the activations of one expert, transposed."""
    size = weight.shape[0] // 2
    tokens = hT.shape[2]
    for start in range(0, size, P_MAX):
        p = min(P_MAX, size - start)
        gate = _clamped(weight, bias, xT, first=2 * start, count=p, H=H, limit=limit)
        up = _clamped(weight, bias, xT, first=2 * start + 1, count=p, H=H, limit=limit)
        nisa.tensor_scalar(dst=up, data=up, op0=nl.maximum, operand0=-limit, op1=nl.add, operand1=1.0)
        slope = nl.ndarray((p, tokens), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=slope, op=nl.sigmoid, data=gate, scale=alpha)
        nisa.tensor_tensor(dst=gate, data1=gate, data2=slope, op=nl.multiply)
        nisa.tensor_tensor(dst=hT[0:p, start // P_MAX, :], data1=gate, data2=up, op=nl.multiply)


def _clamped(weight: Tensor, bias: Tensor, xT: Tensor, first: int, count: int, H: int, limit: float) -> Tensor:
    """Return min(weight[rows] @ x.T + bias[rows], limit), (count, tokens), for rows first, first + 2, ..."""
    tokens = xT.shape[2]
    end = first + 2 * count - 1
    wT = load_transposed(source=weight[first:end:2, :], first=0, count=count)
    total = nl.ndarray((count, tokens), dtype=nl.float32, buffer=nl.psum)
    matmul_tiles(dst=total, stationary=wT, moving=xT, size=H, column=0, width=count)
    column = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=column, src=bias[first:end:2])
    clamped = nl.ndarray((count, tokens), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=clamped, data=total, op0=nl.add, operand0=column, op1=nl.minimum, operand1=limit)
    return clamped


def _down(y: Tensor, hT: Tensor, weight: Tensor, bias: Tensor, share: Tensor, bias_share: float) -> None:
    """Add share * (h @ weight.T + bias_share * bias) of one expert to y (128, tiles of tokens, H)."""
    H = weight.shape[0]
    size = weight.shape[1]
    tokens = hT.shape[2]
    ones = ones_row(dtype=weight.dtype)
    for start in range(0, H, FEATURES):
        width = min(FEATURES, H - start)
        wT = load_transposed(source=weight, first=start, count=width)
        b = nl.ndarray((1, width), dtype=weight.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=b, src=bias[start : start + width])
        nisa.tensor_scalar(dst=b, data=b, op0=nl.multiply, operand0=bias_share)
        for row in range(0, tokens, P_MAX):
            p = min(P_MAX, tokens - row)
            tile = row // P_MAX
            total = nl.ndarray((p, width), dtype=nl.float32, buffer=nl.psum)
            matmul_tiles(dst=total, stationary=hT, moving=wT, size=size, column=row, width=p)
            nisa.nc_matmul(dst=total, stationary=ones[0:1, 0:p], moving=b, accumulate=True)
            nisa.scalar_tensor_tensor(
                dst=y[0:p, tile, start : start + width],
                data=total,
                op0=nl.multiply,
                operand0=share[0:p, tile, :],
                op1=nl.add,
                operand1=y[0:p, tile, start : start + width],
            )
