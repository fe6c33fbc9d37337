"""Mistakes to be put into gpt-oss's components. To add one: an entry in a file beside this one."""

from . import attention, cache, embedding, experts, graph, norm, runtime

FAULTS = (*embedding.FAULTS, *norm.FAULTS, *attention.FAULTS, *experts.FAULTS, *runtime.FAULTS)
GRAPH = graph.FAULTS
SERVED = cache.FAULTS
