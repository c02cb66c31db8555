"""PyTorch is for checking against: what a user runs does without it."""

import subprocess
import sys

IMPORT = """
import sys, jax_unlearn, porting
assert not {"torch", "peft", "transformers"} & set(sys.modules)
"""
# As on a machine without it: transformers would import torch wherever it is installed.
WITHOUT_TORCH = """
import sys
sys.modules |= {"torch": None, "peft": None}
import numpy as np
from jax_unlearn.models.lora import LoraAdapter, LoraPair
import porting
tower = porting.load_vision_tower(checkpoint)
tower(np.zeros((24, 96), np.float32), np.array([[1, 4, 6]]))
pair = LoraPair(a=np.ones((1, 128), np.float32), b=np.ones((24, 1), np.float32))
adapter = LoraAdapter({"merger.linear_fc2": pair}, alpha=1.0, rank=1)
porting.save_peft(adapter, "adapter", base_model_name_or_path=checkpoint)
porting.merge_checkpoint(porting.load_peft("adapter"), checkpoint, "merged")
porting.unmerge_checkpoint("merged", "back")
"""


def run(program, folder):
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_us_imports_no_torch(tmp_path):
    run(IMPORT, tmp_path)


def test_port_forward_and_export_without_torch(tiny_dir, tmp_path):
    run(f"checkpoint = {str(tiny_dir)!r}\n{WITHOUT_TORCH}", tmp_path)
