"""The recipe of the bundled demo checkpoint, its images and its questions.

``python -m benchmarks.shipped.qwen3_vl`` makes the images from two PyPI packages (easy-vqa and
scikit-image), trains a small Qwen3-VL on them, and writes everything to ``jax_unlearn/assets``.
"""
