"""How the work on many images is cut up, shared among cores, and shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from tqdm.auto import tqdm

CACHE = 2**21  # bytes of a block of activations that stays in a core's cache

progress = partial(tqdm, unit="image", unit_scale=True, delay=2)


def summed(function: Callable[[slice], torch.Tensor], blocks: Sequence[slice], cores: int) -> torch.Tensor:
    """Sum of `function` of all blocks of images, a core each: operations on a block in a core's cache are too short to be
    shared among cores."""
    workers, threads = min(cores, len(blocks)), torch.get_num_threads()
    if workers == 1:
        return sum(map(function, blocks))
    torch.set_num_threads(threads // workers)
    try:
        with ThreadPoolExecutor(workers) as pool:
            return sum(pool.map(torch.no_grad()(function), blocks))
    finally:
        torch.set_num_threads(threads)


def budget(device: torch.device, chained: bool = False, fixed: bool = False) -> int:
    """Bytes of an activation to work on at once.

    On a CPU 32 MiB, or what fits a core's cache where operations are `chained`. On a GPU an eighth of its free memory, at most
    1 GiB; if `fixed`, half a GiB whatever is free.
    """
    if device.type == "cuda":
        return 2**29 if fixed else min(torch.cuda.mem_get_info(device)[0] // 8, 2**30)
    return CACHE if chained else 16 * CACHE
