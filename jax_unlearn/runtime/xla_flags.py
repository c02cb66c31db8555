"""What the compiler for GPUs is told, for every program of this process."""

import os

FLAGS = {
    # A run that goes on in another process must come to the same bytes, and measuring which kernel
    # is the fastest, each time anew, need not come to the same one. It also takes long for products
    # in whole float32.
    "xla_gpu_deterministic_ops": "true",
    "xla_gpu_autotune_level": "0",
    # Without measuring, cuBLAS chooses well and the compiler's own products do not.
    "xla_gpu_enable_triton_gemm": "false",
}


def make_reproducible() -> None:
    """Add them to XLA_FLAGS; a flag that is there already stays as it is.

    To be called before JAX starts its backend. Elsewhere than on a GPU they change nothing. Where
    XLA_FLAGS names a file of flags, it is left alone.
    """
    given = os.environ.get("XLA_FLAGS", "").strip()
    if given and not given.startswith("--"):
        return
    names = {flag.partition("=")[0] for flag in given.split()}
    ours = [f"--{name}={value}" for name, value in FLAGS.items() if f"--{name}" not in names]
    os.environ["XLA_FLAGS"] = " ".join([given, *ours]).strip()
