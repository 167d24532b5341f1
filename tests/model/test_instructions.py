"""The tests of the engine's products on the instruction sets of other processors, to which oneDNN is held."""

import os
import subprocess
import sys

import pytest
import torch

from helpers import has_more_than_avx2

AVX512 = "AVX512" in torch.backends.cpu.get_cpu_capability()


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_engine(instructions, root):
    """oneDNN reads the variable once, at its first product, hence a process for each."""
    if instructions.startswith("AVX512") and not AVX512:
        pytest.skip("this processor has no AVX-512")
    if not has_more_than_avx2():
        pytest.skip("this processor has AVX2 at most, of which the tests themselves are")
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    options = ["-q", "-p", "no:cacheprovider", "-k", "chunk_borders or packed or spare or int8"]
    command = [sys.executable, "-m", "pytest", *options, "tests/model/test_engine.py"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
