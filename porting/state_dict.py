"""The weights of a loaded model as in the state dict of its PyTorch class."""

from flax import nnx

from jax_unlearn.models.clip.model import Clip
from jax_unlearn.models.qwen3_vision.tower import Qwen3VisionTower
from jax_unlearn.runtime.errors import UserError
from porting.clip import clip_table
from porting.families import FAMILIES
from porting.qwen3_vision import vision_table
from porting.weight_table import Tensor, torch_tensors


def to_torch(
    model: Qwen3VisionTower | Clip, model_type: str = "qwen3_vl", prefix: str = ""
) -> dict[str, Tensor]:
    """The weights of a tower or a CLIP by PyTorch's names and in its layout.

        tensors = porting.to_torch(tower)
        hf.model.visual.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()})

    Args:
        model: what `load_vision_tower` or `load_clip` returned, also after a change of its weights.
        model_type: the family whose names the tower's tensors get; CLIP has transformers' names.
        prefix: put before each name, such as "model.visual.".

    Returns:
        NumPy arrays of the model's dtype; bfloat16 is that of ml_dtypes. They are views where the
        layout allows, so copy them before changing them.

    Raises:
        UserError: `model` is neither, or `model_type` is not a family of towers.
    """
    if isinstance(model, Clip):
        rules = clip_table(model.config)
    elif not isinstance(model, Qwen3VisionTower):
        found = type(model).__name__
        raise UserError(f"model: expected what load_vision_tower or load_clip returns, got {found}")
    elif not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(f"model_type {model_type!r}: expected one of {', '.join(FAMILIES)}")
    else:
        rules = vision_table(model.config, FAMILIES[model_type])
    return dict(torch_tensors(rules, nnx.state(model), prefix))
