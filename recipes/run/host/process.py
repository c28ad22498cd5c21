"""Settings of the process: faster on CPU without changing a result, and quieter."""

import ctypes
import logging
import os
import platform
import warnings

import torch


def tune_host() -> None:
    """Keep freed memory instead of returning it at every step, and let oneDNN do float32 products where that is exact.

    glibc hands large blocks back to the kernel when they are freed and pays for fresh pages when they are taken again:
    about a third of the CPU time of a language model's step. With AVX-512 but no bfloat16 units, oneDNN computes
    float32 products in float32 and faster than MKL; where it would round to bfloat16 it is not asked to.

    >>> tune_host()
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # of <malloc.h>
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 2**26)
    if _fast_and_exact_onednn():
        torch.set_float32_matmul_precision("medium")


def quiet() -> None:
    """Silence what says nothing about the user's run.

    >>> quiet()
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*could not find the monitored key.*",
        ".*callbacks used to create the checkpoint.*",
        ".*Checkpoint directory .* exists.*",
        ".*The dirpath has changed.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_says_something)


def _says_something(record: logging.LogRecord) -> bool:
    return (
        not record.getMessage()
        .strip()
        .startswith(("💡", "GPU available", "TPU available", "`weights_only`", "Detected KeyboardInterrupt"))
    )


def _fast_and_exact_onednn() -> bool:
    names = ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported")
    checks = [getattr(torch.cpu, name, None) for name in names]
    if torch.cuda.is_available() or not torch.backends.mkldnn.is_available() or None in checks:
        return False
    avx512, bf16, amx = (bool(check()) for check in checks if check is not None)
    return avx512 and not bf16 and not amx
