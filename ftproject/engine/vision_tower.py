"""Two quicker forms of what transformers computes in Qwen3-VL's vision tower; see docs/decisions/013."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

TESTED_VERSIONS = ("5.17.",)  # of transformers; with another one the tower is left as it is
ATTENTION_ARGUMENTS = ("self", "hidden_states", "cu_seqlens", "position_embeddings", "max_seqlen", "kwargs")
FAMILIES = {
    "Qwen3VLVisionModel": "transformers.models.qwen3_vl.modeling_qwen3_vl",
    "Qwen3VLMoeVisionModel": "transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe",
}


def quicken_vision_tower(model: Any) -> bool:
    """Changes the classes of the tower's attention and patch modules in place; returns whether that was done.

    Images of one size are attended to in one batch instead of one after the other (bit-equal on a CPU), and
    patches, which do not overlap, meet the kernel in a matrix product instead of a 3-D convolution (equal to 2e-5).
    Names of modules and parameters stay: adapters and checkpoints do not notice. A version of transformers that this
    was not tested with keeps its own forms.
    """
    import transformers

    tower: Any = getattr(getattr(model, "model", None), "visual", None)
    module = FAMILIES.get(type(tower).__name__)
    if module is None or not transformers.__version__.startswith(TESTED_VERSIONS):
        return False
    attention: Any = type(tower.blocks[0].attn)
    if attention.__module__ == __name__:
        return True
    if tuple(inspect.signature(attention.forward).parameters) != ATTENTION_ARGUMENTS:
        return False
    for block in tower.blocks:
        block.attn.__class__ = dense_attention(attention)
    tower.patch_embed.proj.__class__ = flat_convolution()
    return True


@cache
def dense_attention(attention: Any) -> Any:
    """The attention class of a vision tower with a batched form for images of one size."""
    from importlib import import_module

    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.utils.generic import is_flash_attention_requested

    modeling = import_module(attention.__module__)

    class DenseVisionAttention(attention):  # type: ignore[misc]
        """Attends within images of shape (length, hidden) that follow one another in `hidden_states`."""

        def forward(
            self,
            hidden_states: Any,
            cu_seqlens: Any,
            position_embeddings: Any = None,
            max_seqlen: Any = None,
            **kwargs: Any,
        ) -> Any:
            length = 0 if is_flash_attention_requested(self.config) else common_length(cu_seqlens)
            if not length:
                return super().forward(hidden_states, cu_seqlens, position_embeddings, max_seqlen, **kwargs)
            tokens = hidden_states.shape[0]
            parts = self.qkv(hidden_states).reshape(tokens, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
            query, key = modeling.apply_rotary_pos_emb_vision(parts[0], parts[1], *position_embeddings)
            query, key, value = (
                part.reshape(-1, length, self.num_heads, self.head_dim).transpose(1, 2)
                for part in (query, key, parts[2])
            )
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, modeling.eager_attention_forward
            )
            attended, _ = attend(
                self,
                query,
                key,
                value,
                attention_mask=None,
                scaling=self.scaling,
                dropout=self.attention_dropout if self.training else 0.0,
                is_causal=False,
                **kwargs,
            )
            return self.proj(attended.reshape(tokens, -1).contiguous())

    return DenseVisionAttention


def common_length(cu_seqlens: Any) -> int:
    """The tokens of each image where all have as many, else 0; asked once per forward pass, not once per layer.

    Looking at numbers on a CUDA device waits for it: transformers does so three times in every layer.
    """
    known: int | None = getattr(cu_seqlens, "common_length", None)
    if known is None:
        lengths = cu_seqlens.diff().tolist()
        known = lengths[0] if len(set(lengths)) == 1 else 0
        cu_seqlens.common_length = known
    return known


@cache
def flat_convolution() -> type[Any]:
    """A 3-D convolution that is a matrix product where its input is exactly one kernel large."""
    from torch import nn

    class FlatConv3d(nn.Conv3d):  # type: ignore[misc]
        """Takes patches of shape (patches, channels, *kernel_size); anything else is convolved."""

        def forward(self, patches: Any) -> Any:
            if tuple(patches.shape[2:]) != tuple(self.kernel_size):
                return super().forward(patches)
            flat = nn.functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
            return flat[:, :, None, None, None]

    return FlatConv3d
