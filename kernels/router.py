"""Router kernel: logits, top-k and the softmax over the chosen; the torch twin is in router_torch.py."""

from tp_harness.kernels.compat import Tensor, nisa, nki, nl
from tp_harness.kernels.tiling import P_MAX, load_transposed, matmul_tiles, ones_row

FOUND = 8


@nki.jit
def router(x: Tensor, weight: Tensor, bias: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Choose top_k experts per token and weight them by the softmax over their logits.

    Dimensions:
        T: tokens, any number; H: hidden size, up to 4,096 in float32; E: experts, 8 to 512; top_k: 1 to 8.

    Args:
        x: (T, H), HBM, float32 or bfloat16.
        weight: (E, H), HBM, type of x.
        bias: (E,), HBM, type of x.
        top_k: int.

    Returns:
        experts: (T, top_k), shared HBM, uint32, by falling logit.
        weights: (T, top_k), shared HBM, float32.
        affinities: (T, E), shared HBM, float32: the weight of a chosen expert, 0 for the others.
        logits: (T, E), shared HBM, type of x.

    Notes:
        Logits are summed in float32 and rounded to the type of x before the choice, as a torch linear layer
        does: in bfloat16 ties are common. Of equal logits the lower expert number is chosen first.
        Every rank computes the same choice; nothing here depends on the rank.

    Pseudocode:
        logits = x @ weight.T + bias
        values = max8(logits); experts = find_index8(logits, values)
        weights = exp(values - values[0]) / sum over the first top_k
        affinities = sum over k: (expert number == experts[k]) * weights[k]
    """
    T = x.shape[0]
    E, H = weight.shape
    experts = nl.ndarray((T, top_k), dtype=nl.uint32, buffer=nl.shared_hbm)
    weights = nl.ndarray((T, top_k), dtype=nl.float32, buffer=nl.shared_hbm)
    affinities = nl.ndarray((T, E), dtype=nl.float32, buffer=nl.shared_hbm)
    logits = nl.ndarray((T, E), dtype=x.dtype, buffer=nl.shared_hbm)
    wT = load_transposed(source=weight, first=0, count=E)
    b = nl.ndarray((1, E), dtype=weight.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=b, src=bias)
    ones = ones_row(dtype=weight.dtype)
    numbers = nl.ndarray((P_MAX, E), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=numbers, pattern=[[1, E]], offset=0, channel_multiplier=0)
    for start in range(0, T, P_MAX):
        p = min(P_MAX, T - start)
        xT = load_transposed(source=x, first=start, count=p)
        total = nl.ndarray((p, E), dtype=nl.float32, buffer=nl.psum)
        matmul_tiles(dst=total, stationary=xT, moving=wT, size=H, column=0, width=p)
        nisa.nc_matmul(dst=total, stationary=ones[0:1, 0:p], moving=b, accumulate=True)
        rounded = nl.ndarray((p, E), dtype=x.dtype, buffer=nl.sbuf)
        nisa.tensor_copy(dst=rounded, src=total)
        values = nl.ndarray((p, FOUND), dtype=nl.float32, buffer=nl.sbuf)
        nisa.max8(dst=values, src=rounded)
        places = nl.ndarray((p, FOUND), dtype=nl.uint32, buffer=nl.sbuf)
        nisa.nc_find_index8(dst=places, data=rounded, vals=values)
        share = _softmax(values=values, count=top_k)
        spread = _spread(numbers=numbers, places=places, share=share, count=top_k)
        nisa.dma_copy(dst=experts[start : start + p, :], src=places[:, 0:top_k])
        nisa.dma_copy(dst=weights[start : start + p, :], src=share)
        nisa.dma_copy(dst=affinities[start : start + p, :], src=spread)
        nisa.dma_copy(dst=logits[start : start + p, :], src=rounded)
    return experts, weights, affinities, logits


def _softmax(values: Tensor, count: int) -> Tensor:
    """Return the softmax over the first `count` of 8 falling values, as a (P, count) tile."""
    p = values.shape[0]
    largest = nl.ndarray((p, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=largest, data=values[:, 0:1], op0=nl.multiply, operand0=-1.0)
    powers = nl.ndarray((p, count), dtype=nl.float32, buffer=nl.sbuf)
    total = nl.ndarray((p, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(
        dst=powers,
        op=nl.exp,
        data=values[:, 0:count],
        bias=largest,
        reduce_op=nl.add,
        reduce_res=total,
        reduce_cmd=nisa.reduce_cmd.reset_reduce,
    )
    nisa.reciprocal(dst=total, data=total)
    share = nl.ndarray((p, count), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=share, data=powers, op0=nl.multiply, operand0=total)
    return share


def _spread(numbers: Tensor, places: Tensor, share: Tensor, count: int) -> Tensor:
    """Return a (P, E) tile with each chosen expert's share in its column and 0 elsewhere."""
    p = places.shape[0]
    E = numbers.shape[1]
    chosen = nl.ndarray((p, count), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=chosen, src=places[:, 0:count])
    spread = nl.ndarray((p, E), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=spread, value=0.0)
    one = nl.ndarray((p, E), dtype=nl.float32, buffer=nl.sbuf)
    for k in range(count):
        nisa.tensor_scalar(
            dst=one,
            data=numbers[0:p, :],
            op0=nl.equal,
            operand0=chosen[:, k : k + 1],
            op1=nl.multiply,
            operand1=share[:, k : k + 1],
        )
        nisa.tensor_tensor(dst=spread, data1=spread, data2=one, op=nl.add)
    return spread
