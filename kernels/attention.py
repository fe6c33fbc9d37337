"""Attention kernel (causal, GQA, learned sinks, sliding window); the torch twin is in attention_torch.py."""

from tp_harness.kernels.compat import Tensor, nisa, nki, nl
from tp_harness.kernels.tiling import BANK_FP32, P_MAX, broadcast_row, num_tiles, transpose_rows

MASKED = -1.0e30


@nki.jit
def attention(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, scale: float, window: int) -> Tensor:
    """Attend from each query to the keys at its position and before, with one learned sink per head.

    Dimensions:
        B: sequences; S: tokens of a sequence, up to 8,192 in float32; Q: query heads of this rank;
        G: key/value heads of this rank, a divisor of Q; D: head size, up to 128.

    Args:
        q: (B, S, Q, D), HBM, float32 or bfloat16.
        k, v: (B, S, G, D), HBM, type of q. Query heads n * Q / G .. (n + 1) * Q / G use head n.
        sinks: (Q,), HBM, float32 or bfloat16: a logit that takes part in the softmax and has no value.
        scale: float, multiplies q . k.
        window: int, how many keys a query sees, its own included; 0 for all before it.

    Returns:
        (B, S, Q * D), shared HBM, type of q.

    Notes:
        Scores, masks and statistics are float32; masked scores are -1e30, never -inf. Only tiles that a mask
        touches are masked, and keys that no query of a tile sees are not read. Probabilities are rounded to
        the type of v for the second matmul; their sum is taken before that.

    Pseudocode:
        for each sequence, key/value head, query head, 128 queries:
            scores = scale * q @ k.T, masked
            top = max(row max of scores, sink)
            p = exp(scores - top); total = sum(p) + exp(sink - top)
            y = (p @ v) / total
    """
    B, S, Q, D = q.shape
    G = k.shape[2]
    group = Q // G
    out = nl.ndarray((B, S, Q * D), dtype=q.dtype, buffer=nl.shared_hbm)
    row = nl.ndarray((1, Q), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=row, src=sinks)
    sink_columns = nl.ndarray((P_MAX, Q), dtype=nl.float32, buffer=nl.sbuf)
    broadcast_row(dst=sink_columns, row=row)
    for b in range(B):
        for g in range(G):
            keys, values = _load_head(k=k, v=v, sequence=b, head=g)
            for n in range(g * group, (g + 1) * group):
                for start in range(0, S, P_MAX):
                    p = min(P_MAX, S - start)
                    first = 0
                    if window > 0:
                        first = max(0, start - window + 1) // P_MAX * P_MAX
                    query = nl.ndarray((p, D), dtype=q.dtype, buffer=nl.sbuf)
                    nisa.dma_copy(dst=query, src=q[b, start : start + p, n, :])
                    scores = _scores(query=query, keys=keys, start=start, first=first, scale=scale)
                    _mask(scores=scores, start=start, first=first, window=window)
                    y = _softmax_times(scores=scores, sink=sink_columns[0:p, n : n + 1], values=values, first=first)
                    nisa.dma_copy(dst=out[b, start : start + p, n * D : (n + 1) * D], src=y)
    return out


def _load_head(k: Tensor, v: Tensor, sequence: int, head: int) -> tuple[Tensor, Tensor]:
    """Return one head's keys transposed, (D, 1, S), and its values as (128, tiles of S, D)."""
    S = k.shape[1]
    D = k.shape[3]
    keys = nl.ndarray((D, 1, S), dtype=k.dtype, buffer=nl.sbuf)
    values = nl.ndarray((P_MAX, num_tiles(S, P_MAX), D), dtype=v.dtype, buffer=nl.sbuf)
    for start in range(0, S, P_MAX):
        p = min(P_MAX, S - start)
        rows = nl.ndarray((p, D), dtype=k.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=rows, src=k[sequence, start : start + p, head, :])
        transpose_rows(dst=keys, data=rows, column=start)
        nisa.dma_copy(dst=values[0:p, start // P_MAX, :], src=v[sequence, start : start + p, head, :])
    return keys, values


def _scores(query: Tensor, keys: Tensor, start: int, first: int, scale: float) -> Tensor:
    """Return scale * q @ k.T for keys first .. start + P, float32, not masked."""
    p = query.shape[0]
    D = query.shape[1]
    queryT = nl.ndarray((D, 1, p), dtype=query.dtype, buffer=nl.sbuf)
    transpose_rows(dst=queryT, data=query, column=0)
    end = start + p
    scores = nl.ndarray((p, end - first), dtype=nl.float32, buffer=nl.sbuf)
    for low in range(first, end, BANK_FP32):
        width = min(BANK_FP32, end - low)
        products = nl.ndarray((p, width), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=products, stationary=queryT[:, 0, :], moving=keys[:, 0, low : low + width], accumulate=False)
        nisa.tensor_scalar(
            dst=scores[:, low - first : low - first + width], data=products, op0=nl.multiply, operand0=scale
        )
    return scores


def _mask(scores: Tensor, start: int, first: int, window: int) -> None:
    """Set to -1e30 the scores of keys after the query, and of keys that have left its window."""
    p = scores.shape[0]
    last = start - first
    # Only the tile that holds the queries' own positions has keys after a query.
    nisa.affine_select(
        dst=scores[:, last : last + p],
        pattern=[[-1, p]],
        channel_multiplier=1,
        on_true_tile=scores[:, last : last + p],
        on_false_value=MASKED,
        cmp_op=nl.greater_equal,
        offset=0,
    )
    if window > 0:
        width = scores.shape[1]
        nisa.affine_select(
            dst=scores,
            pattern=[[1, width]],
            channel_multiplier=-1,
            on_true_tile=scores,
            on_false_value=MASKED,
            cmp_op=nl.greater_equal,
            offset=window - 1 - start + first,
        )


def _softmax_times(scores: Tensor, sink: Tensor, values: Tensor, first: int) -> Tensor:
    """Return softmax(scores and sink) @ values; the sink has no value."""
    p = scores.shape[0]
    width = scores.shape[1]
    D = values.shape[2]
    top = nl.ndarray((p, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=top, op=nl.maximum, data=scores, axis=1)
    nisa.tensor_tensor(dst=top, data1=top, data2=sink, op=nl.maximum)
    nisa.tensor_scalar(dst=top, data=top, op0=nl.multiply, operand0=-1.0)
    powers = nl.ndarray((p, width), dtype=values.dtype, buffer=nl.sbuf)
    total = nl.ndarray((p, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(
        dst=powers,
        op=nl.exp,
        data=scores,
        bias=top,
        reduce_op=nl.add,
        reduce_res=total,
        reduce_cmd=nisa.reduce_cmd.reset_reduce,
    )
    rest = nl.ndarray((p, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=rest, op=nl.exp, data=sink, bias=top)
    nisa.tensor_tensor(dst=total, data1=total, data2=rest, op=nl.add)
    nisa.reciprocal(dst=total, data=total)
    powersT = nl.ndarray((P_MAX, num_tiles(width, P_MAX), p), dtype=values.dtype, buffer=nl.sbuf)
    transpose_rows(dst=powersT, data=powers, column=0)
    weighted = nl.ndarray((p, D), dtype=nl.float32, buffer=nl.psum)
    for tile in range(num_tiles(width, P_MAX)):
        depth = min(P_MAX, width - tile * P_MAX)
        nisa.nc_matmul(
            dst=weighted,
            stationary=powersT[0:depth, tile, :],
            moving=values[0:depth, first // P_MAX + tile, :],
            accumulate=(tile > 0),
        )
    y = nl.ndarray((p, D), dtype=values.dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=y, data=weighted, op0=nl.multiply, operand0=total)
    return y
