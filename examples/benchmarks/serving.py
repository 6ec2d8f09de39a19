"""A model behind HTTP: time of single texts, and throughput with eight clients.

    python examples/benchmarks/serving.py --models FOLDER

Fits four members of "sve" on the bundled intents (last block, a few steps: times do not depend on quality), writes
the ensemble and its student to FOLDER, saved and exported, serves each by examples/serving.py in a process of its
own, and measures requests of one text over the loopback address: 200 in turn, then 50 by each of eight clients.
Requires fastapi, httpx, uvicorn and the extras `export`, `offline` and `text`.
"""

import argparse
import concurrent.futures
import contextlib
import pathlib
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
from _common import machine, require_idle

import skve
from skve.datasets import load_intents

N_SINGLE, N_CLIENTS, N_EACH, N_WARM = 200, 8, 50, 20
SERVER = pathlib.Path(__file__).parents[1] / "serving.py"


def write_models(folder):
    """Write the models that are not there yet; return their paths by name."""
    models = {
        "ensemble, skve": folder / "ensemble",
        "student, skve": folder / "student",
        "ensemble, onnxruntime": folder / "ensemble.onnx",
        "student, onnxruntime": folder / "student.onnx",
    }
    if not all(path.exists() for path in models.values()):
        data = load_intents()
        clf = skve.SVETextClassifier(layers="last:1", max_steps=10, predict_precision="float32", random_state=0)
        clf.fit(data.texts[::4], data.target[::4])
        for name, one in (("ensemble", clf), ("student", clf.distill(data.texts[::4]))):
            one.save(folder / name)
            one.export(folder / f"{name}.onnx")
    return models


@contextlib.contextmanager
def served(path):
    """Serve a model; give the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, SERVER, path, "--port", str(port)])
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.ConnectError):
                httpx.get(f"{address}/health")
                break
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def ask(address, texts):
    """Send texts one by one; return the seconds of each."""
    times = []
    with httpx.Client(base_url=address, timeout=120) as client:
        for text in texts:
            start = time.perf_counter()
            client.post("/predict", json={"items": [text]}).raise_for_status()
            times.append(time.perf_counter() - start)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=pathlib.Path, required=True)
    parser.add_argument("--force", action="store_true", help="measure on a busy machine, too")
    arguments = parser.parse_args()
    arguments.models.mkdir(parents=True, exist_ok=True)
    require_idle(arguments.force)
    models = write_models(arguments.models)
    print(machine())
    texts = (load_intents().texts_test * 2)[: max(N_SINGLE, N_CLIENTS * N_EACH)]
    print("| model | p50, ms | p99, ms | requests a second, eight clients | MB |\n|---|---|---|---|---|")
    for name, path in models.items():
        with served(path) as address:
            ask(address, texts[-N_WARM:])
            single = np.array(ask(address, texts[:N_SINGLE])) * 1000
            start = time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(N_CLIENTS) as pool:
                parts = [texts[i * N_EACH : (i + 1) * N_EACH] for i in range(N_CLIENTS)]
                list(pool.map(ask, [address] * N_CLIENTS, parts))
            rate = N_CLIENTS * N_EACH / (time.perf_counter() - start)
        size = sum(f.stat().st_size for f in ([path] if path.is_file() else path.iterdir())) / 1e6
        p50, p99 = np.percentile(single, [50, 99])
        print(f"| {name} | {p50:.1f} | {p99:.1f} | {rate:.0f} | {size:.1f} |", flush=True)


if __name__ == "__main__":
    main()
