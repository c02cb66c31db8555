"""The recipe of the bundled CLIP checkpoint and its images.

``python -m benchmarks.shipped.clip`` takes easy-VQA's pictures and the drawings of nine sets of
icons, trains a small CLIP on them, and writes it to ``jax_unlearn/assets/clip``. What it needs
besides the project's own test dependencies: ``npm`` and ``pip`` on a network, and ``pip install
resvg-py``, which draws the SVGs. It takes about 16 minutes on one CPU thread.
"""
