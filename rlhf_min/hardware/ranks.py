"""Several processes that train one model: each has its own device and a share of every batch.

    torchrun --nproc-per-node 2 train_policy.py

A rank is the number of a process, 0 … size − 1.  Rank r works on the items r, r + size, … of a
batch (`own`); then the ranks exchange their results (`complete`, `gather`), so that all continue
with the same numbers.  Only gradients differ between ranks, until the optimiser sums them.
DistributedDataParallel would sum them only if its own forward was called, and this code calls a
model's parts.  Without torchrun there is one rank, and it owns every item.
"""

import atexit
import json
import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from itertools import count

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_min import InputError

TIMEOUT = "RLHF_MIN_TIMEOUT"  # environment variable: seconds to wait for another rank


class _Group:
    """The group of this process."""

    rank, size, store, moved, calls = 0, 1, None, 0, count()  # calls: those of from_first


def rank() -> int:
    """This process's number, from 0."""
    return _Group.rank


def size() -> int:
    """How many processes train together."""
    return _Group.size


def in_group() -> bool:
    """Whether other processes train with this one, even while rank 0 works alone."""
    return _Group.store is not None


def moved() -> int:
    """Bytes of the tensors that this process has summed with others or broadcast, in all."""
    return _Group.moved


def is_first() -> bool:
    """Whether this is rank 0, the only one that writes files and shows progress."""
    return _Group.rank == 0


def own(items: int) -> range:
    """The indices, of 0 … items − 1, that this rank works on."""
    return range(_Group.rank, items, _Group.size)


def complete(*tables: Tensor) -> None:
    """Fill in, in place, the rows of each table [P, ...] that belong to other ranks."""
    for table in tables if _Group.size > 1 else ():
        rows = torch.zeros(table.shape, dtype=torch.float64)
        mine = list(own(len(table)))
        rows[mine] = table[mine].cpu().double()
        table.copy_(_summed(rows))  # x + 0 is exactly x


def all_sum(*values: float) -> list[float]:
    """The sum over all ranks of each number, in float64."""
    return _summed(torch.tensor(values, dtype=torch.float64)).tolist()


def _summed(values: Tensor) -> Tensor:
    if _Group.size > 1:
        _Group.moved += values.numel() * values.element_size()
        dist.all_reduce(values)
    return values


def gather(items: list) -> list:
    """The items of all ranks in order, given those that this rank owns."""
    if _Group.size == 1:
        return items
    parts: list = [None] * _Group.size
    dist.all_gather_object(parts, items)
    everything = [None] * sum(map(len, parts))
    for r, part in enumerate(parts):
        everything[r :: _Group.size] = part
    return everything


def gather_groups(items: list, size: int, count: int) -> list[list]:
    """The groups of `size` items that belong to each of `count` prompts, from all ranks.

    items: those of this rank, one group after another; groups that it does not own are dropped.
    """
    groups = [items[i * size : (i + 1) * size] for i in range(len(own(count)))]
    return gather(groups)


def from_first(function: Callable, *arguments, patient: bool = False):
    """function(*arguments), called by rank 0 alone while the others wait; all get its result.

    Ranks > 0 get it as JSON: there a tuple is a list.  patient: without a limit of time.
    """
    if _Group.size == 1:
        return function(*arguments)
    key, deadline = f"result-{next(_Group.calls)}", time.monotonic() + _patience()
    if is_first():
        with _alone():
            result = function(*arguments)
        _Group.store.set(key, json.dumps(result))
        return result
    while not _Group.store.check([key]):  # in Python, so that a signal can end it
        if failed_elsewhere():
            raise SystemExit(2)
        if not patient and time.monotonic() > deadline:
            raise InputError(f"rank 0 did not answer for {_patience():g} seconds, so it hangs")
        time.sleep(0.02)
    result = json.loads(_Group.store.get(key))
    if _Group.store.add(f"{key}-read", 1) == _Group.size - 1:  # the last one that reads it
        _Group.store.delete_key(key)
    return result


@contextmanager
def _alone():
    """Context manager: this process is the only rank; a script run inside starts no group."""
    size, _Group.size = _Group.size, 1
    try:
        yield
    finally:
        _Group.size = size


def reduce_to(owner: int, gradient: Tensor) -> None:
    """Sum a gradient over all ranks, in place; only rank `owner` has the sum afterwards."""
    if _Group.size > 1:
        _Group.moved += gradient.numel() * gradient.element_size()
        dist.reduce(gradient, owner)


def broadcast_from(owner: int, tensors: list[Tensor]) -> None:
    """Give all ranks the numbers that rank `owner` has in flat tensors of one dtype, in place."""
    if _Group.size > 1:
        flat = torch.cat(tensors)
        _Group.moved += flat.numel() * flat.element_size()
        dist.broadcast(flat, owner)
        torch._foreach_copy_(tensors, flat.split([len(tensor) for tensor in tensors]))


def to_first(owner: int, tensor: Tensor) -> None:
    """Copy the numbers of a tensor of rank `owner` into the one of rank 0."""
    if owner and _Group.rank == owner:
        dist.send(tensor, 0)
    elif owner and is_first():
        dist.recv(tensor, owner)


def barrier() -> None:
    """Wait until all ranks are here."""
    if _Group.size > 1:
        dist.barrier()


def together(main: Callable) -> Callable:
    """Decorator of main(config): under torchrun all ranks run it together; an error ends all."""

    @wraps(main)
    def run(config):
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return main(config)
        if not _Group.store:
            _start()
        try:
            return main(config)
        except BaseException as error:
            atexit.unregister(dist.destroy_process_group)  # it could wait for a process that died
            if _Group.store.add("errors", 1) > 1:  # another rank or a script run inside says why
                code = getattr(error, "code", 130 if isinstance(error, KeyboardInterrupt) else 2)
                raise SystemExit(code) from None
            if reason := _lost(error):
                raise InputError(f"{reason}; --resume goes on from the last checkpoint") from error
            raise

    return run


def first_only(main: Callable) -> Callable:
    """Decorator of main(config): under torchrun only rank 0 runs it, and the others wait."""
    return together(wraps(main)(lambda config: from_first(main, config, patient=True)))


def failed_elsewhere() -> bool:
    """Whether another rank has failed, so that torchrun is ending this process."""
    return in_group() and _Group.store.check(["errors"])


def _start() -> None:
    """Join the ranks that torchrun started."""
    gpus = torch.cuda.device_count()
    if gpus and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > gpus:
        if os.environ["RANK"] != "0":
            raise SystemExit(2)  # rank 0 says why
        raise InputError(f"--nproc-per-node of torchrun is more than this machine's {gpus} GPUs")
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, size = next(dist.rendezvous("env://"))
    store.set(f"started-{rank}", "")
    store.wait([f"started-{r}" for r in range(size)], timedelta(minutes=30))  # imports are slow
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpus else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=_patience()),
    )
    atexit.register(dist.destroy_process_group)
    _Group.rank, _Group.size, _Group.store = rank, size, dist.PrefixStore("rlhf_min", store)


def _patience() -> float:
    """Seconds to wait for another rank."""
    try:
        return float(os.environ.get(TIMEOUT, 1800))
    except ValueError as error:
        raise InputError(f"the environment variable {TIMEOUT} must be seconds") from error


def _lost(error: BaseException) -> str:
    """What an error of the network between ranks means; "" for any other error."""
    text = str(error).lower()
    of_the_network = isinstance(error, dist.DistError) or "gloo" in text
    if not (isinstance(error, RuntimeError) and of_the_network):
        return ""
    if "timed out" in text or "timeout" in text:
        return f"a process of this run did not answer for {_patience():g} seconds, so it hangs"
    return "a process of this run died without a word (killed, perhaps because memory ran out)"
