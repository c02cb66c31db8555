"""LoraAdapter and LoraPair by the name that the public interface gives their module."""

from jax_unlearn.models.lora import LoraAdapter, LoraPair, init_adapter, lora_delta

__all__ = ["LoraAdapter", "LoraPair", "init_adapter", "lora_delta"]
