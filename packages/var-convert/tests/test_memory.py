"""safetensors to safetensors streams."""

import subprocess
import sys

import pytest
from var_transformer import Transformer, TransformerConfig

MEASURED = """
import re, sys
from pathlib import Path
from var_convert import convert
def resident(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
before = resident("VmRSS")
convert(sys.argv[1], sys.argv[2])
convert(sys.argv[1], sys.argv[2], dtype="bfloat16", force=True)
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from Linux's /proc")
def test_memory_stays_below_the_largest_tensor_and_a_third(tmp_path):
    config = TransformerConfig(
        depth=1, width=64, heads=1, vocab_size=2**18, num_classes=2**18 - 1, scales=(1, 2)
    )
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    Transformer(config).save(files[0])
    largest = 4 * config.width * config.vocab_size
    assert files[0].stat().st_size > 2 * largest
    command = [sys.executable, "-c", MEASURED, *files]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) <= 1.3 * largest
