"""Who computes while the caller of a graph waits for its result."""

import os
import subprocess
import sys

GRAPH = """
import time
import mindspore as ms
import numpy as np
from var_tokenizer.operators import conv2d

conv = conv2d(3)

@ms.jit
def mean(x, weight, bias):
    return conv(x, weight, bias).mean()

shapes = (4, 64, 64, 64), (64, 3, 3, 64), (64,)
arrays = [ms.Tensor(np.ones(shape, np.float32)) for shape in shapes]
float(mean(*arrays))
everyone, own = time.process_time(), time.thread_time()
for _ in range(40):
    float(mean(*arrays))
print((time.thread_time() - own) / (time.process_time() - everyone))
"""


def test_a_caller_computes_its_graph_and_keeps_no_core_from_it_by_waiting(tmp_path):
    script = tmp_path / "graph.py"  # a file, whose functions MindSpore can read
    script.write_text(GRAPH)
    command, environment = [sys.executable, script], os.environ | {"OMP_NUM_THREADS": "1"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    own_share = float(shown.stdout.split()[-1])  # of the processor's time
    assert own_share > 0.9
