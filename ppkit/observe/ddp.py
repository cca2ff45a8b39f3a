"""Shows the buckets of torch's own DistributedDataParallel, whose all-reduces Python does not see otherwise."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn

from ppkit.simulate_ddp import bucket_label


def show_buckets(ddp: nn.parallel.DistributedDataParallel) -> None:
    """Let `ddp` reduce its buckets by calls that are observed, and that do what it does by itself.

    A communication hook that the learner has registered stays.

    Args:
        ddp: before its first backward.
    """
    if not ddp._comm_hooks:
        ddp.register_comm_hook(ddp.process_group, _all_reduce)


# Without types: torch compares a hook's annotations with its own classes, and not as text.
def _all_reduce(group, bucket):  # type: ignore[no-untyped-def]
    tensor: Any = bucket.buffer()
    tensor.div_(dist.get_world_size(group))
    tensor.label = bucket_label(bucket.index(), tensor.numel() * tensor.element_size())
    work: Any = dist.all_reduce(tensor, group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])
