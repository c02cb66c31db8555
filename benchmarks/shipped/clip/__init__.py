"""The recipe of the bundled CLIP checkpoint and its images.

``python -m benchmarks.shipped.clip`` trains a small CLIP on easy-VQA's pictures and the drawings of
nine icon sets, and writes it to ``jax_unlearn/assets/clip``. Besides the project's test
dependencies it needs ``npm`` and ``pip`` with network access, and ``pip install resvg-py``, which
renders the SVGs. It takes about 16 minutes on one CPU thread.
"""
