"""Fixed settings under which mechanisms compute, whatever the caller has set."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


# The device types that have an autocast setting of their own in PyTorch.
AUTOCAST_DEVICES = ("cpu", "cuda", "xpu", "mps")


@contextmanager
def own_arithmetic() -> Iterator[None]:
    """Compute under fixed settings, so that what is computed is what the sensitivity is proved for.

    Within the context new tensors are float32 on the CPU unless they say otherwise, autocast is off, gradients are
    recorded, matrix products of float32 are computed in float32 (no TF32, no bfloat16), and no operation is refused for
    being nondeterministic. Afterwards the caller's settings are restored.

    Why it matters: inside `torch.autocast` a sum of pixels is rounded to 8 bits, so that one record can change it by
    several times the sensitivity; under `torch.set_default_dtype(torch.bfloat16)` a Poisson sampler draws from 256
    numbers only, and includes records at another rate than the one in the ledger.
    """
    dtype = torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with ExitStack() as settings:
        torch.set_default_dtype(torch.float32)
        settings.callback(torch.set_default_dtype, dtype)
        torch.use_deterministic_algorithms(False)
        settings.callback(torch.use_deterministic_algorithms, deterministic, warn_only=warn_only)
        if torch.get_default_device().type != "cpu":  # this context slows down every call of PyTorch
            settings.enter_context(torch.device("cpu"))
        settings.enter_context(torch.inference_mode(False))
        settings.enter_context(torch.enable_grad())
        for device in AUTOCAST_DEVICES:
            settings.enter_context(torch.autocast(device, enabled=False))
        torch.clear_autocast_cache()  # an outer autocast would keep copies of weights from one step to the next
        settings.enter_context(_full_matrix_products())
        yield


@contextmanager
def _full_matrix_products() -> Iterator[None]:
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    matmuls = [backend for backend in backends if hasattr(backend, "fp32_precision")]  # since PyTorch 2.9
    precisions = [matmul.fp32_precision for matmul in matmuls]
    try:
        overall = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller set the backends one by one, for which there is no overall name
        overall = "highest"
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(overall)
        for matmul, precision in zip(matmuls, precisions, strict=True):
            matmul.fp32_precision = precision
