"""A GPU that is not there: its tensors hold their numbers on the CPU, and behave otherwise as those of a GPU do. They do not mix
with the CPU's, numpy cannot read them, and convolutions shorten their factors to 10 bits unless told not to."""

import contextlib
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

GPU = torch.device("cuda", 0)
CROSSING = ("_to_copy", "copy_", "index", "index_put_")  # may take tensors of the CPU, too
PRODUCTS = {
    "convolution": torch.backends.cudnn.conv,
    "mm": torch.backends.cuda.matmul,
    "addmm": torch.backends.cuda.matmul,
}


class OnGpu(torch.Tensor):
    """A tensor on the GPU; `held` has its numbers. To torch itself it is on "meta", where nothing needs a driver."""

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, **layout, device="meta")

    def __init__(self, held):
        self.held = held

    device = property(lambda self: GPU)

    def tolist(self):
        return self.held.tolist()

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """What is made on the GPU, or moved to it, passes by here."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function, args, kwargs):
    """An operation on the numbers that tensors hold; what it gives lies where a GPU's would."""
    name = function._schema.name.removeprefix("aten::")
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, OnGpu)]
    if there and name not in CROSSING and any(t.ndim for t in tensors if not isinstance(t, OnGpu)):
        raise RuntimeError(
            f"{name}: expected all tensors to be on the same device, but found at least two, cuda:0 and cpu"
        )
    short = name in PRODUCTS and bool(there) and PRODUCTS[name].fp32_precision == "tf32"
    on_gpu = isinstance(args[0], OnGpu) if name == "copy_" else bool(there)
    if kwargs.get("device") is not None:
        on_gpu = torch.device(kwargs["device"]).type != "cpu"
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map_only(OnGpu, lambda t: _shortened(t.held) if short else t.held, (args, kwargs))
    found = function(*args, **kwargs)
    changed = {id(t.held): t for t in there}  # in place: then it is the tensor it was
    return tree_map_only(torch.Tensor, lambda t: changed.get(id(t), OnGpu(t)) if on_gpu else t, found)


def _shortened(t):
    """Float32 numbers with the 10 bits of TF32."""
    return (t.contiguous().view(torch.int32) & -(2**13)).view(torch.float32) if t.dtype == torch.float32 else t


class _Generator(torch.Generator):
    """Draws for a device; all of them are the CPU's."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls)


@contextlib.contextmanager
def gpu(free=2**28):
    """A machine with a GPU and so many bytes free on it."""
    with (
        mock.patch("torch.cuda._lazy_init", lambda: None),
        mock.patch("torch.cuda.get_device_name", lambda device=None: "Pretended"),
        mock.patch("torch.cuda.mem_get_info", lambda device=None: (free, 2 * free)),
        mock.patch("torch.cuda.get_rng_state", lambda device=None: torch.get_rng_state()),
        mock.patch("torch.cuda.set_rng_state", lambda state, device=None: None),
        mock.patch("torch.Generator", _Generator),
        mock.patch("torch.compile", lambda model: model),
        _Mode(),
    ):
        lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes its tensor on the CPU, and moves it
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(lifted)
