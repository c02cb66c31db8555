"""Where each form of an export works, and where it loads and changes nothing.

One table for the lines after an export, the model card, and docs/serve.md.
"""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """What becomes of an export in a tool. INERT: it loads without an error, changes nothing."""

    WORKS = "works"
    INERT = "inert"
    FAILS = "does not load"
    LOST = "too coarse"
    NONE = "–"


@dataclass(frozen=True)
class Client:
    """A tool, with the outcome for both forms.

    tool: its name. adapter, merged: (outcome, remark) of a form. evidence: how that is known, by a
    `test` of this package, `tried` by hand, or `read` from the tool's source. clip: the row is
    about CLIP, and otherwise about Qwen towers.
    """

    tool: str
    adapter: tuple[Outcome, str]
    merged: tuple[Outcome, str]
    evidence: str
    clip: bool = False


WORKS, INERT, FAILS, LOST, NONE = Outcome
CLIENTS = (
    Client("transformers, and PEFT's PeftModel", (WORKS, ""), (WORKS, ""), "test"),
    Client(
        "PEFT's AutoPeftModel",
        (WORKS, "where the name of the base leads to it"),
        (NONE, ""),
        "test",
    ),
    Client("bitsandbytes 8-bit, torchao int8, quanto int8", (WORKS, ""), (WORKS, ""), "tried"),
    Client(
        "bitsandbytes nf4",
        (LOST, "the edit is lost in the noise of 4 bits"),
        (WORKS, "as coarse as the base in 4 bits"),
        "tried",
    ),
    Client(
        "vLLM",
        (INERT, "unless --enable-tower-connector-lora; refuses a bias (LEACE); never Qwen3-Omni"),
        (WORKS, ""),
        "tried",
    ),
    Client(
        "llama.cpp",
        (INERT, "convert_lora_to_gguf writes a file without tensors and exits with 0"),
        (WORKS, "convert_hf_to_gguf --mmproj"),
        "tried",
    ),
    Client("SGLang", (FAILS, "its start fails"), (WORKS, ""), "read"),
    Client("sglang-jax", (INERT, "language model layers only"), (NONE, ""), "read"),
    Client("tpu-inference", (INERT, "language model layers only"), (WORKS, ""), "read"),
    Client(
        "mlx-vlm",
        (FAILS, "it has a format of its own"),
        (WORKS, "with config.json in the hub's style"),
        "tried",
    ),
    Client("transformers' CLIPModel, and PEFT", (WORKS, ""), (WORKS, ""), "test", clip=True),
    Client(
        "OpenCLIP",
        (FAILS, "its projections are no Linears"),
        (WORKS, "for a checkpoint in its own format"),
        "tried",
        clip=True,
    ),
)
HEADINGS = {
    WORKS: "works in",
    INERT: "INERT in (loads without an error and changes nothing)",
    FAILS: "does not load in",
    LOST: "too coarse in",
}


def facts(form: str, clip: bool) -> list[str]:
    """One line for each outcome of a form, `peft` or `merged`: in which tools it is met.

    Args:
        form: the form of the export.
        clip: whether the base is a CLIP.
    """
    lines = []
    for outcome, heading in HEADINGS.items():
        tools = []
        for one in CLIENTS:
            found, remark = one.merged if form == "merged" else one.adapter
            if one.clip == clip and found == outcome:
                tools.append(f"{one.tool} ({remark})" if remark else one.tool)
        lines += [f"{heading}: {'; '.join(tools)}"] if tools else []
    return lines


def rows() -> list[list[str]]:
    """Rows of a table of tools: name, adapter, merged, evidence."""

    def cell(found: tuple[Outcome, str]) -> str:
        outcome, remark = found
        shown = f"**{outcome}**" if outcome in (INERT, FAILS, LOST) else str(outcome)
        return f"{shown}: {remark}" if remark else shown

    return [[one.tool, cell(one.adapter), cell(one.merged), one.evidence] for one in CLIENTS]
