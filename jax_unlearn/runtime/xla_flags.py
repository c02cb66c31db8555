"""XLA flags that make results on GPUs reproducible between processes."""

import os

FLAGS = {
    # A resumed run must give the same bytes, and autotuning may choose another kernel in another
    # process. It also takes long for products in full float32.
    "xla_gpu_deterministic_ops": "true",
    "xla_gpu_autotune_level": "0",
    # Without autotuning, cuBLAS chooses well and Triton's matrix products do not.
    "xla_gpu_enable_triton_gemm": "false",
}


def make_reproducible() -> None:
    """Add FLAGS to the environment variable XLA_FLAGS; flags already set keep their value.

    Must be called before JAX starts its backend. The flags only affect GPUs. If XLA_FLAGS names a
    file of flags, it is left unchanged.
    """
    given = os.environ.get("XLA_FLAGS", "").strip()
    if given and not given.startswith("--"):
        return
    names = {flag.partition("=")[0] for flag in given.split()}
    ours = [f"--{name}={value}" for name, value in FLAGS.items() if f"--{name}" not in names]
    os.environ["XLA_FLAGS"] = " ".join([given, *ours]).strip()
