"""The only module that imports PyTorch."""

import torch


def replica_id():
    """Returns the rank of this process in a group of several, or None."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return distributed.get_rank() if distributed.get_world_size() > 1 else None
