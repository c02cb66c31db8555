"""Public module of LoraAdapter and LoraPair; they are defined in models/lora.py."""

from jax_unlearn.models.lora import LoraAdapter, LoraPair, init_adapter, lora_delta

__all__ = ["LoraAdapter", "LoraPair", "init_adapter", "lora_delta"]
