"""Peak memory of the text data module on a small and on a big corpus: it must not grow with the corpus.

    python tests/benchmarks/corpus_memory.py                # 10 MB against 1,000 MB, about 15 minutes on two cores
    python tests/benchmarks/corpus_memory.py --big-mb 100

Each corpus is the standard library's source over and over, with other numbers in each copy. A fresh process tokenizes
it (learning the BPE first) and reads a pass of training batches; what it reports is its peak resident memory.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small-mb", type=int, default=10, help="megabytes of the small corpus")
    parser.add_argument("--big-mb", type=int, default=1000, help="megabytes of the big corpus")
    parser.add_argument("--tokenizer", choices=["bpe", "word", "char"], default="bpe")
    parser.add_argument("--max-batches", type=int, default=50_000, help="batches read of the training lanes")
    parser.add_argument(
        "--folder", type=Path, help="where corpora and token files go for the while (default: a temporary one)"
    )
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.tokenizer, options.max_batches)))
        return

    rows = []
    for megabytes in (options.small_mb, options.big_mb):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder, "corpus.txt")
            write_corpus(path, megabytes * 10**6)
            command = [sys.executable, __file__, "--measure", str(path), "--tokenizer", options.tokenizer]
            command += ["--max-batches", str(options.max_batches)]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append({"megabytes": megabytes, **json.loads(result.stdout)})

    print(f"tokenizer {options.tokenizer}")
    print("corpus MB      tokens  imports MiB  prepare MiB   pass MiB  prepare s   again s  batches  ms/batch")
    for row in rows:
        print(
            "{megabytes:9d} {tokens:11,d} {imported_mib:12.0f} {prepared_mib:12.0f} {read_mib:10.0f} {prepare_s:10.1f}"
            " {again_s:9.2f} {batches:8,d} {batch_ms:9.3f}".format(**row)
        )
    print(f"peak, big to small: {rows[1]['read_mib'] / rows[0]['read_mib']:.2f}")


def measure(path: Path, tokenizer: str, max_batches: int) -> dict[str, float]:
    """Prepares the corpus and reads its training lanes, in this process; returns times and peaks of memory."""
    from rnn_blocks.recipes.language_model.data import TextDataModule

    report: dict[str, float] = {"imported_mib": peak_mib()}

    def module() -> TextDataModule:
        limit = 10_000 if tokenizer == "word" else None
        return TextDataModule(str(path), tokenizer=tokenizer, vocab_size=limit, cache_dir=str(path.parent))  # type: ignore[arg-type]

    start = time.perf_counter()
    data = module()
    data.prepare()
    report |= {"prepare_s": time.perf_counter() - start, "prepared_mib": peak_mib()}

    start = time.perf_counter()
    data = module()
    data.prepare()
    report |= {"again_s": time.perf_counter() - start, "tokens": data.splits["train"].num_tokens}

    start, batches = time.perf_counter(), 0
    for batches, _ in enumerate(data.train_dataloader(), start=1):
        if batches == max_batches:
            break
    report |= {"batches": batches, "batch_ms": (time.perf_counter() - start) / batches * 1e3, "read_mib": peak_mib()}
    return report


def write_corpus(path: Path, num_bytes: int) -> None:
    """Writes ``num_bytes`` of source code; each copy of the standard library has its numbers changed."""
    from rnn_blocks.recipes.data.corpora.corpus import SPLITS
    from rnn_blocks.recipes.data.corpora.stdlib import StandardLibrary

    library, copy = StandardLibrary(), 0
    with path.open("wb") as file:
        while True:
            for split in SPLITS:
                for text in library.pieces(split):
                    varied = re.sub(r"\d+", lambda found, n=copy: str(int(found[0][:9]) + n), text)
                    file.write(varied.encode()[: num_bytes - file.tell()].decode(errors="ignore").encode())
                    if file.tell() >= num_bytes - 4:
                        return
            copy += 1


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


if __name__ == "__main__":
    main()
