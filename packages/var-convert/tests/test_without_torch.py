"""PyTorch is an extra: everything but .pth works without it."""

import json
import os
import subprocess
import sys

import pytest
import tiny
from var_tokenizer import Tokenizer

# Runs commands in a process in which PyTorch is as if it were not installed.
BLOCKED = """
import json, sys
class NoTorch:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'")
sys.meta_path.insert(0, NoTorch)
from var_convert.cli import main
sys.exit(json.dumps([main(command) for command in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """A native tokenizer, made without PyTorch."""
    path = tmp_path_factory.mktemp("native") / "tokenizer.safetensors"
    Tokenizer(tiny.tokenizer()).save(path)
    return path


def run(*commands):
    """Exit codes, and lines on stderr."""
    texts = [[str(word) for word in command] for command in commands]
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED, json.dumps(texts)],
        capture_output=True,
        text=True,
        env={**os.environ, "GLOG_v": "3"},
    )
    *lines, codes = result.stderr.splitlines()
    return json.loads(codes), lines


def test_safetensors_and_ckpt_work_without_torch(native, tmp_path):
    ckpt, again = tmp_path / "a.ckpt", tmp_path / "b.safetensors"
    assert run([native, ckpt], [ckpt, again], ["verify", native, again])[0] == [0, 0, 0]


def test_what_needs_torch_says_what_to_install(native, tmp_path):
    source, target = tmp_path / "a.pth", tmp_path / "b.pth"
    source.write_bytes(b"some bytes")
    codes, lines = run(
        [source, tmp_path / "c.ckpt"], [native, target], ["verify", native, native, "--forward"]
    )
    assert codes == [2, 2, 2] and len(lines) == 3
    assert all("pip install 'var-convert[torch]'" in line for line in lines)
    assert list(tmp_path.iterdir()) == [source]


def test_importing_the_package_does_not_import_torch():
    code = "import sys, var_convert, var_convert.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
