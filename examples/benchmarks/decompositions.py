"""Time and memory of decomposing one weight, by its size.

    python examples/benchmarks/decompositions.py --threads 2

What a fit does (eigenvectors of the smaller Gram matrix in float64, with a check) beside `torch.linalg.svd` in
float64. Each runs in a process of its own, which is stopped after `--limit` seconds; the peak is that of the process
less what it held when the weight was there. The error is the largest entry of `U diag(sigma) Vt - W`, relative to the
largest singular value.
"""

import argparse
import multiprocessing
import resource
import time

import torch
from _common import machine

from skve._backbones import decomposition

SIZES = [(384, 1536), (768, 768), (768, 3072), (1024, 4096), (2048, 2048), (2048, 8192), (4096, 4096), (4096, 11008)]
WAYS = {
    "Gram": decomposition._by_eigenvectors,
    "SVD": lambda matrix: torch.linalg.svd(matrix, full_matrices=False),
}


def peak():
    """Return the largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(way, size, threads, queue):
    torch.set_num_threads(threads)
    matrix = torch.randn(size, generator=torch.Generator().manual_seed(0)).double()
    WAYS[way](matrix[:8, :8])  # libraries
    before, start = peak(), time.perf_counter()
    factors = WAYS[way](matrix)
    seconds, memory = time.perf_counter() - start, peak() - before
    error = float("nan")
    if factors is not None:
        U, sigma, Vt = factors
        error = float(((U * sigma) @ Vt - matrix).abs().max() / sigma[0])
    queue.put((seconds, memory, error))


def main(options):
    print(machine().replace(f"{torch.get_num_threads()} threads", f"{options.threads} threads"))
    print("size           way     seconds  peak, MiB  error")
    context = multiprocessing.get_context("spawn")
    for size in SIZES:
        for way in options.ways:
            queue = context.SimpleQueue()
            process = context.Process(target=measure, args=(way, size, options.threads, queue))
            process.start()
            process.join(options.limit)
            if process.is_alive():
                process.terminate()
                process.join()
                result = f"more than {options.limit}: stopped"
            elif process.exitcode:
                result = f"ended with {process.exitcode}"
            else:
                result = "{:7.2f}  {:9.0f}  {:.0e}".format(*queue.get())
            print(f"{size[0]:5} x {size[1]:5}  {way:6}  {result}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=180, help="seconds for one decomposition")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--threads", type=int, default=2)
    main(parser.parse_args())
