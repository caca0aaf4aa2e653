"""A stand-in for a GPU: tensors that PyTorch takes for tensors on "cuda", with their values in main memory.

By the device of a tensor PyTorch decides which autocast applies, which generator may fill it, and which other tensors
it may meet. The tensors of the stand-in answer "cuda:0" to all of that, and a CPU computes their values. So whole runs
can be tried on a machine without a GPU, and what a GPU refuses is refused: operations on tensors of different devices,
a generator of another device than the tensor that it fills, NumPy on a tensor of the GPU. `StandInGPU.waits` has what
the CPU would wait for, and `StandInGPU.most_bytes` the memory that the tensors would take on the GPU.
"""

import ctypes
import os
import weakref
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar
from unittest import mock

import accelerate.state
import torch
from torch.optim import optimizer as optimizers
from torch.overrides import TorchFunctionMode
from torch.utils import _device as default_device
from torch.utils._python_dispatch import TorchDispatchMode


aten = torch.ops.aten
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
# What C++ is told: a device for which autocast takes the rules of "cuda", and autograd needs no library of a GPU.
IN_CPP = torch.device("xla", 0)
XLA, META = 9, 14  # the numbers of two types of devices in C++

BACKWARD = (torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad)
ACROSS_DEVICES = {aten._to_copy.default, aten.copy_.default, aten.copy.default, aten._foreach_copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# Like the operations that PyTorch tags as pointwise, these take a tensor without dimensions on the CPU for a number.
TAKE_NUMBERS = {aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.where.self}
# The CPU waits for these, as it needs the value, or as the size of the result depends on values.
WAIT = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
    aten.repeat_interleave.Tensor,
}


class WrongDeviceError(RuntimeError):
    """What a GPU refuses."""


class GPUTensor(torch.Tensor):
    """A tensor of the stand-in; `on_cpu` is the tensor that has its values, in the same memory."""

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_xla = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_cpu):
        tensor = torch.Tensor._make_subclass(cls, on_cpu, dispatch_device=True, device_for_backend_keys=GPU)
        tensor.on_cpu = on_cpu
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return IN_CPP
        raise WrongDeviceError(f"{func} is called for a tensor of the stand-in, outside of its context")

    def as_subclass(self, cls):
        disguised = self.on_cpu.as_subclass(cls)
        disguised.is_on_gpu = True
        return disguised

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, **_):
        raise WrongDeviceError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = copied = self.detach().clone().requires_grad_(self.requires_grad)
            copied._is_param = isinstance(self, torch.nn.Parameter)
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        return self.on_cpu.__reduce_ex__(protocol)

    def __repr__(self):
        return f"GPUTensor({self.on_cpu})"


class Generator(torch.Generator):
    """A generator that says for which device it was made."""

    of_gpu: ClassVar = {}  # by address, as an operation gets another Python object for the same generator

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls)
        cls.of_gpu[generator._cdata] = torch.device(device).type == "cuda"
        return generator

    device = property(lambda self: GPU if self.of_gpu[self._cdata] else CPU)


class _CallsWithoutLibrary(TorchFunctionMode):
    """Changes the calls for which PyTorch asks the library of a GPU into calls that give the same."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        if func is torch.Tensor.device.__get__ and hasattr(args[0], "is_on_gpu"):
            return GPU
        if func in BACKWARD:  # there is no thread for the GPU
            with torch.autograd.set_multithreading_enabled(False):
                return func(*args, **kwargs)
        if func in default_device._device_constructors() and kwargs.get("device") is None:
            kwargs["device"] = default_device.CURRENT_DEVICE
        if func in (torch.tensor, torch.as_tensor) and is_gpu(kwargs.get("device")):
            return func(*args, **kwargs | {"device": CPU}).to(IN_CPP)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):  # lists become tensors, unseen by any mode
            args = [args[0], tuple(map(_index, args[1])) if isinstance(args[1], tuple) else _index(args[1]), *args[2:]]
        args = [IN_CPP if is_gpu(value) else value for value in args]
        return func(*args, **{name: IN_CPP if is_gpu(value) else value for name, value in kwargs.items()})


def is_gpu(value):
    return isinstance(value, (str, torch.device)) and str(value).partition(":")[0] in ("cuda", "xla")


def _index(value):
    return torch.tensor([*value], device="cpu") if isinstance(value, (list, range)) else value


@contextmanager
def _no_guard_needed():
    """Let C++ switch to the GPU by the object that does so for "meta", and does nothing."""
    library = ctypes.CDLL(Path(torch.__file__).parent / "lib" / "libc10.so")
    guards = (ctypes.c_void_p * (META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before, guards[XLA] = guards[XLA], guards[META]
    try:
        yield
    finally:
        guards[XLA] = before


def _apply(module, *inputs, original=torch.nn.Module._apply, **options):
    """Move a network: its parameters become tensors of another class."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return original(module, *inputs, **options)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


class StandInGPU(TorchDispatchMode):
    """A context in which there is a GPU, which Accelerate chooses.

    Attributes:
        waits (`list[str]`): The operations for which the CPU had to wait.
        num_bytes (`int`), most_bytes (`int`): Memory of the tensors on the GPU: now, and at most.
    """

    def __init__(self):
        super().__init__()
        self.waits = []
        self.num_bytes = self.most_bytes = 0
        self._storages = {}
        self._seed(0)

    def __enter__(self):
        replaced = {
            torch: {"Generator": Generator},
            torch.accelerator: {"is_available": lambda: True},
            torch.cuda.amp.common: {"amp_definitely_not_available": lambda: False},
            accelerate.state: {"check_cuda_p2p_ib_support": lambda: True},
            torch.nn.Module: {"_apply": _apply},
            optimizers: {"_foreach_supported_types": [*optimizers._foreach_supported_types, GPUTensor]},
            torch.cuda: {
                "_lazy_init": lambda: None,
                "is_available": lambda: True,
                "device_count": lambda: 1,
                "current_device": lambda: 0,
                "is_bf16_supported": lambda *_: True,
                "synchronize": lambda device=None: self.waits.append("synchronize"),
                "manual_seed_all": self._seed,
                "get_rng_state": lambda device=None: self._random_state.clone(),
                "set_rng_state": lambda state, device=None: setattr(self, "_random_state", state.clone()),
                "memory_allocated": lambda device=None: self.num_bytes,
                "max_memory_allocated": lambda device=None: self.most_bytes,
                "reset_peak_memory_stats": lambda device=None: setattr(self, "most_bytes", self.num_bytes),
            },
        }
        with ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ, ACCELERATE_TORCH_DEVICE="cuda:0"))
            for owner, names in replaced.items():
                for name, value in names.items():
                    stack.enter_context(mock.patch.object(owner, name, value))
            stack.enter_context(_no_guard_needed())
            stack.enter_context(_CallsWithoutLibrary())
            self._stack = stack.pop_all()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._stack.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return IN_CPP
        if func is aten._fused_sdp_choice.default:
            return 0  # the formula, since a CPU has none of the GPU's kernels
        if func is aten.is_pinned.default:
            return hasattr(args[0], "is_in_pinned_memory")
        if func is aten._pin_memory.default:
            pinned = args[0].clone()
            pinned.is_in_pinned_memory = True
            return pinned
        call = _Call(func, args, kwargs)
        call.check()
        if call.waits():
            self.waits.append(str(func))
        originals = {}

        def on_cpu(value):
            if isinstance(value, GPUTensor):
                originals[id(value.on_cpu)] = value
                return value.on_cpu
            return CPU if is_gpu(value) else value

        def on_gpu(value):
            if not isinstance(value, torch.Tensor):
                return value
            return originals.get(id(value)) if id(value) in originals else self._on_gpu(value)

        args, kwargs = _each(args, on_cpu), {name: _each(value, on_cpu) for name, value in kwargs.items()}
        if not call.on_gpu:
            return func(*args, **kwargs)
        with self._own_random_numbers() if call.draws_by_itself() else ExitStack():
            return _each(func(*args, **kwargs), on_gpu)

    def _on_gpu(self, values):
        storage = values.untyped_storage()
        if storage._cdata not in self._storages:
            self._remember(storage._cdata, storage, storage.nbytes())
        return GPUTensor(values)

    def _remember(self, key, storage, size):
        def freed(_):
            self.num_bytes -= size
            del self._storages[key]

        self.num_bytes += size
        self.most_bytes = max(self.most_bytes, self.num_bytes)
        self._storages[key] = weakref.ref(storage, freed)

    def _seed(self, seed):
        self._random_state = Generator().manual_seed(seed).get_state()

    @contextmanager
    def _own_random_numbers(self):
        """Draw from the generator of the GPU, not from that of the CPU."""
        of_cpu = torch.get_rng_state()
        torch.set_rng_state(self._random_state)
        try:
            yield
        finally:
            self._random_state = torch.get_rng_state()
            torch.set_rng_state(of_cpu)


def _each(value, change):
    """The same nested lists with each value changed."""
    if isinstance(value, (list, tuple)):
        return type(value)([_each(inner, change) for inner in value])
    return change(value)


class _Call:
    """A call of an operation, with some of its tensors on the GPU or none."""

    def __init__(self, func, args, kwargs):
        self.func, self.args, self.kwargs = func, args, kwargs
        leaves = []
        _each([*args, *kwargs.values()], leaves.append)
        self.generators = [leaf for leaf in leaves if isinstance(leaf, torch._C.Generator)]
        self.tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        self.of_cpu = [tensor for tensor in self.tensors if not isinstance(tensor, GPUTensor)]
        self.has_gpu = len(self.of_cpu) < len(self.tensors)
        if kwargs.get("device") is not None:
            self.on_gpu = is_gpu(kwargs["device"])  # where the result is
        elif func in ACROSS_DEVICES or func in INDEXED:
            self.on_gpu = isinstance(args[0][0] if isinstance(args[0], list) else args[0], GPUTensor)
        else:
            self.on_gpu = self.has_gpu

    def draws_by_itself(self):
        """Whether it draws random numbers, from no generator that is given."""
        return not self.generators and torch.Tag.nondeterministic_seeded in self.func.tags

    def check(self):
        """Refuse what a GPU refuses, in PyTorch's words."""
        wanted = "cuda" if self.on_gpu else "cpu"
        for generator in self.generators:
            if (found := "cuda" if Generator.of_gpu.get(generator._cdata) else "cpu") != wanted:
                raise WrongDeviceError(f"Expected a '{wanted}' device type for generator but found '{found}'")
        if not self.has_gpu or self.func in ACROSS_DEVICES:
            return
        strangers = self.of_cpu
        if self.func in INDEXED and self.on_gpu:  # by indices on the CPU
            indices = {id(index) for index in self.args[1]}
            strangers = [tensor for tensor in strangers if id(tensor) not in indices and tensor.dim() > 0]
        elif torch.Tag.pointwise in self.func.tags or self.func in TAKE_NUMBERS:
            strangers = [tensor for tensor in strangers if tensor.dim() > 0]
        if strangers:
            raise WrongDeviceError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"(in {self.func})"
            )

    def waits(self):
        """Whether the CPU has to wait until the GPU has done everything before."""
        if self.func in ACROSS_DEVICES:
            if self.on_gpu == self.has_gpu == (not self.of_cpu):
                return False
            later = self.kwargs.get("non_blocking") or self.args[2:] == (True,)
            return not (self.on_gpu and later and hasattr(self.tensors[-1], "is_in_pinned_memory"))
        by_truth = self.func in INDEXED and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in self.args[1]
        )
        return self.has_gpu and (self.func in WAIT or by_truth)
