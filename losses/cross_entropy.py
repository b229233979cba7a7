"""Softmax cross-entropy when each process holds some of the columns.

Shapes: N rows (the same on every shard), S columns of this shard, which may be 0.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _ShardedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_NS: Tensor, labels_N: Tensor, highest_N: Tensor, reduce_sum_: Callable[[Tensor], Tensor]
    ) -> Tensor:
        N, S = logits_NS.shape
        shifted_NS = logits_NS - highest_N.unsqueeze(1)
        sums_2N = logits_NS.new_zeros((2, N))  # sum of exponentials; the target's shifted logit
        if S:
            target_N = shifted_NS.gather(1, labels_N.clamp(min=0).unsqueeze(1)).squeeze(1)
            sums_2N[1] = torch.where(labels_N >= 0, target_N, 0.0)
        exp_NS = shifted_NS.exp_()
        sums_2N[0] = exp_NS.sum(1)
        reduce_sum_(sums_2N)
        ctx.save_for_backward(exp_NS, sums_2N[0], labels_N)
        return (sums_2N[0].log() - sums_2N[1]).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        exp_NS, sum_N, labels_N = ctx.saved_tensors
        N, S = exp_NS.shape
        each = grad / N
        grad_NS = exp_NS * (each / sum_N).unsqueeze(1)
        if S:
            column_N1 = labels_N.clamp(min=0).unsqueeze(1)
            minus_N1 = torch.where(labels_N >= 0, -each, torch.zeros_like(each)).unsqueeze(1)
            grad_NS.scatter_add_(1, column_N1, minus_N1)
        return grad_NS, None, None, None


def sharded_cross_entropy(
    logits_NS: Tensor, labels_N: Tensor, highest_N: Tensor, reduce_sum_: Callable[[Tensor], Tensor]
) -> Tensor:
    """Mean softmax cross-entropy over N rows, the softmax running over the columns of all shards.

    A column that a row must not see holds -inf. The label of each row must be on exactly one shard.

    Args:
        logits_NS: (N, S) of this shard; S may be 0.
        labels_N: (N,) int64, the column of the target on this shard, or -1 where another shard has it.
        highest_N: (N,) the largest logit of each row over all shards, or a little more; the same on every shard. It
            keeps the exponentials in range and has no gradient.
        reduce_sum_: overwrites a (2, N) tensor with its sum over shards.

    Returns:
        The scalar loss, equal on every shard. Its gradient on each shard is that of the one common loss.

    Collectives: one call of ``reduce_sum_`` forward, none backward.
    """
    return _ShardedCrossEntropy.apply(logits_NS, labels_N, highest_N.detach(), reduce_sum_)  # type: ignore[no-any-return]
