"""One side of the benchmark in a process of its own.

    python worker.py SIDE PART WEIGHTS

SIDE is ours, torch, compiled or openvino; PART is codec, generate or train. Loads what the part
needs, then obeys lines on standard input, one job a line, and answers each with a line of JSON:
``{"seconds": s, "result": [...], ...}``.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings are not ours

SIDES = {
    "ours": ("ours", "jobs"),
    "torch": ("pytorch", "jobs"),
    "compiled": ("pytorch", "compiled_jobs"),
    "openvino": ("converted", "jobs"),
}


def peak_memory() -> int:
    """Bytes that this process held at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status names no VmHWM")


def main() -> None:
    side, part, weights = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    module, function = SIDES[side]
    jobs = getattr(importlib.import_module(module), function)(part, Path(weights))
    for line in sys.stdin:
        start, worked = time.perf_counter(), time.process_time()
        result = jobs[line.strip()]()
        answer = {"seconds": time.perf_counter() - start, "result": result}
        answer["processor_seconds"] = time.process_time() - worked  # of all threads
        answers.write(json.dumps(answer | {"peak_memory": peak_memory()}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
