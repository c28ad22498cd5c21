"""Settings of the process: faster on CPU without changing a result, and quieter."""

import ctypes
import logging
import os
import platform
import warnings
from pathlib import Path

CPU = Path("/proc/cpuinfo")


def tune_host() -> None:
    """Keep freed memory instead of returning it at every step, and have products that no number of threads changes.

    glibc hands large blocks back to the kernel when they are freed and pays for fresh pages when they are taken again:
    up to a third of the CPU time of a language model's step.

    >>> tune_host()
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # of <malloc.h>
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 2**26)
    keep_bits()


def keep_bits() -> None:
    """Have products of the same bits with any number of threads; before the first product.

    On Intel's CPUs with AVX-512 MKL adds long products up in another order with other numbers of threads, unless it is
    told not to, which costs nothing that could be measured. An ``MKL_CBWR`` that is set stays.

    >>> keep_bits()
    """
    known = CPU.read_text(encoding="utf-8", errors="replace") if CPU.exists() else ""
    if "GenuineIntel" in known and " avx512f " in known:
        os.environ.setdefault("MKL_CBWR", "AVX512,STRICT")


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
