"""Several processes: a sharding rule for DTensor, and FSDP2's mixed precision with tables that stay in float32."""

import functools
from typing import Any

from torch import nn

from ._torch import OPS
from .modules import GroupRational


@functools.cache
def register_sharding_rules() -> None:
    """Tell DTensor how `rational` and its gradients are sharded; done when a DTensor first meets them.

    Rows may be sharded along any leading dimension of x, with the tables replicated: each process then has a part of
    the sums that are the tables' gradients. Where the groups divide evenly among the processes, columns may be sharded
    with the tables' rows; a table that all groups share is replicated.
    """
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    def ways(x, numerator, denominator):
        """Yield the placements of x, of both tables, and of both tables' gradients."""
        tables, last = (numerator, denominator), x.ndim - 1
        yield Replicate(), [Replicate()] * 2, [Replicate()] * 2
        for dim in range(last):
            yield Shard(dim), [Replicate()] * 2, [Partial()] * 2
        groups = max(table.shape[0] for table in tables)
        if groups == 1 or groups % x.mesh.size() == 0:
            shared = [table.shape[0] == 1 for table in tables]
            yield (
                Shard(last),
                [Replicate() if s else Shard(0) for s in shared],
                [Partial() if s else Shard(0) for s in shared],
            )

    @register_sharding(OPS.rational.default)
    def forward(x, numerator, denominator, backward, sources):
        return [([of_x], [of_x, *tables, None, None]) for of_x, tables, _ in ways(x, numerator, denominator)]

    @register_sharding(OPS.rational_backward.default)
    def backward(grad_output, x, numerator, denominator, backward, sources):
        return [
            ([of_x, *gradients], [of_x, of_x, *tables, None, None])
            for of_x, tables, gradients in ways(x, numerator, denominator)
        ]


def shard_tables(model: nn.Module, **options: Any) -> None:
    """Call FSDP2's `fully_shard` on each GroupRational of `model`, so that its tables stay in their own dtype.

    A policy with param_dtype=torch.bfloat16 would round the tables in the forward pass. Call this before
    `fully_shard(…, mp_policy=policy)` of the modules around them: what has been sharded by itself keeps its own policy,
    which here casts nothing, and x and y stay in the dtype of the layers around. Tables may then differ in dtype from
    those layers, which one call of `fully_shard` refuses. Load published checkpoints before sharding: their names and
    shapes are understood where tables are whole. options: `fully_shard`'s, such as mesh; tables are gathered once a
    step unless reshard_after_forward is given.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    options = {"reshard_after_forward": False} | options
    for module in model.modules():
        if isinstance(module, GroupRational):
            fully_shard(module, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False), **options)
