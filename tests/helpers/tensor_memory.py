"""The memory of tensors, counted from their sizes, which is the same on any machine."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """A context that counts the operations in it, and the bytes of the tensors that they make.

    `num_bytes` is the largest number of bytes that were alive at a time, as in `PeakMemory` for a whole process.
    """

    def __init__(self, device=None):
        super().__init__()
        self.operations = self.num_bytes = self._alive = 0
        self._known = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        for storage in storages((args, kwargs)):  # tensors from before the context do not count
            self._remember(storage, 0)
        result = func(*args, **(kwargs or {}))
        for storage in storages(result):
            self._remember(storage, storage.nbytes())
        self.num_bytes = max(self.num_bytes, self._alive)
        return result

    def _remember(self, storage, size):
        key = storage._cdata  # its address, which another storage may get when this one is freed
        if key in self._known:
            return

        def freed(_):
            self._alive -= size
            del self._known[key]

        self._alive += size
        self._known[key] = weakref.ref(storage, freed)


def storages(values):
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
