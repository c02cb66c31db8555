"""Loading a tower reads the vision tensors alone, and needs hardly more memory than they take."""

import json
import math
import struct
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from transformers import Qwen3VLConfig

from porting.checkpoint import INDEX
from porting.qwen3_vision import abstract_tower, vision_config, vision_table
from porting.weight_table import aligned
from tests import tiny

# 85 million parameters, 339 MB in float32.
VISION = {
    "depth": 8,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_heads": 12,
    "out_hidden_size": 1024,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [3],
}
LANGUAGE_BYTES = 2**33
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}

# The interpreter's base is what it holds with everything imported and JAX started; transformers
# counts as an import, although the loader imports it late.
MEASURE = """
import json, sys
import jax, transformers
from flax import nnx
from transformers import AutoConfig
import porting

def peak():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))

jax.block_until_ready(jax.numpy.zeros(3) + 1)
base = peak()
tower = porting.load_vision_tower(sys.argv[1], "float32")
needed = peak() - base
leaves = jax.tree.leaves(nnx.state(tower))
held = sum(leaf.nbytes for leaf in leaves)
ones = all(float(leaf.min()) == float(leaf.max()) == 1 for leaf in leaves)
print(json.dumps({"needed": needed, "held": held, "ones": ones}))
"""


def vision_shapes(directory):
    """Shape of every vision tensor, by its key."""
    config = vision_config(directory)[1]
    leaves = dict(nnx.to_flat_state(nnx.state(abstract_tower(config))))
    shapes = {}
    for rule in vision_table(config):
        views = rule.views(np.broadcast_to(np.int8(0), leaves[rule.path].shape))
        shapes |= {f"model.visual.{key}": view.shape for key, view in views}
    return shapes


def write_shard(path, shapes, kind, fill):
    """A safetensors file; without `fill` a hole in the place of the data."""
    size, header, end = DTYPES[kind].itemsize, {}, 0
    for key, shape in shapes.items():
        start, end = end, end + math.prod(shape) * size
        header[key] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if fill:
            np.ones(end // size, DTYPES[kind]).tofile(file)
        file.truncate(8 + len(text) + end)


def write_checkpoint(directory, kind):
    """The vision tensors in one shard, and in another a language model 25 times as large."""
    Qwen3VLConfig(vision_config=VISION, text_config=tiny.TEXT).save_pretrained(directory)
    columns = LANGUAGE_BYTES // 16 // DTYPES[kind].itemsize
    language = {f"model.language_model.layers.{i}.weight": (columns,) for i in range(16)}
    weight_map = {}
    for name, shapes in (("vision", vision_shapes(directory)), ("language", language)):
        write_shard(directory / f"{name}.safetensors", shapes, kind, fill=name == "vision")
        weight_map |= dict.fromkeys(shapes, f"{name}.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("kind", DTYPES)
def test_the_peak_is_the_towers_own_bytes(kind, tmp_path):
    """A float32 tower, from files of both dtypes; its bytes are those that it takes in memory."""
    write_checkpoint(tmp_path, kind)
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["held"] > 3e8
    assert measured["ones"]
    assert 0.9 < measured["needed"] / measured["held"] <= 1.2


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(7,), (3, 5), (0, 4), (64, 1024, 33)])
def test_jax_takes_an_aligned_array_over_without_a_copy(dtype, shape):
    array = aligned(shape, dtype)
    array[...] = 3
    taken = jax.device_put(array)
    assert (taken.dtype, taken.shape) == (dtype, shape)
    if array.size:
        assert taken.unsafe_buffer_pointer() == array.ctypes.data
    del array
    assert (np.asarray(taken) == 3).all()
