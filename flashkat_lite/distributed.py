"""Several processes: a sharding rule for DTensor, and FSDP2's mixed precision with tables that stay in float32."""

import functools
from typing import Any

from torch import nn

from ._torch import OPS
from .modules import GroupRational


@functools.cache
def register_sharding_rules() -> None:
    """Tell DTensor how the ops and their gradients are sharded; done when a DTensor first meets them.

    Rows may be sharded along any leading dimension of x, with the tables replicated: each process then has a part of
    the sums that are the tables' gradients. Where the groups divide evenly among the processes, columns may be sharded
    with the tables' rows; a table that all groups share is replicated. A norm needs whole rows, and its two numbers a
    row lie in the order of x's first dimension: that one alone may be sharded, x along others is brought there.
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

    def norm_ways(x):
        """Yield the placements of what has rows, and of what is a sum over them."""
        yield Replicate(), Replicate()
        if x.ndim > 1:
            yield Shard(0), Partial()

    def place(tensors, placement):
        """Optional tensors: None stays None."""
        return [None if t is None else placement for t in tensors]

    @register_sharding(OPS.norm_rational.default)
    def norm_forward(x, branch, weight, bias, numerator, denominator, rms, eps, dtype, sources):
        parameters = place((weight, bias, numerator, denominator), Replicate())
        return [
            (
                [rows, Replicate() if branch is None else rows, Replicate() if rms else rows, rows],
                [rows, *place((branch,), rows), *parameters, None, None, None, None],
            )
            for rows, _ in norm_ways(x)
        ]

    @register_sharding(OPS.norm_rational_backward.default)
    def norm_backward(dz, dsum, x, mean, rstd, weight, bias, numerator, denominator, rms, eps, branch_dtype, sources):
        parameters = weight, bias, numerator, denominator
        found = []
        for rows, sums in norm_ways(x):
            of_mean = Replicate() if rms else rows
            of_parameters = [Replicate() if t is None else sums for t in parameters]
            given = [rows, *place((dsum,), rows), rows, of_mean, rows, *place(parameters, Replicate()), *[None] * 4]
            found.append(([rows, Replicate() if branch_dtype is None else rows, *of_parameters], given))
        return found


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
