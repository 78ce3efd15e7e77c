"""How many tokens of prompts and answers fit into memory at once when a model generates."""

from __future__ import annotations

from typing import Any

# The rest is for pixels, fragmentation and what the estimate does not know; a batch that does not fit is halved.
PART_OF_FREE = 0.5
# A machine's memory is shared with the system and with whoever else works on it.
PART_OF_FREE_CPU = 0.2
# Beyond this a batch gains nothing and loses more when it has to be done again.
LARGEST_BATCH_TOKENS = 1_000_000


def bytes_per_token(config: Any, element_size: int) -> int:
    """Memory that one token of a prompt takes in bytes: keys and values of every layer, and one layer's activations.

    `config` is a Qwen3-VL configuration (transformers), `element_size` the bytes of a number. While a prompt is read,
    a layer holds about six times the hidden size (residual, norm, queries, keys, values, output) and three times the
    intermediate size (gate, up, product); the layers follow each other, so one layer's share counts.
    """
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head
    # A mixture of experts has no intermediate_size of its own in some versions; its active experts are smaller.
    intermediate = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    return int((cache + 6 * text.hidden_size + 3 * intermediate) * element_size)


def tokens_that_fit(config: Any, *, free_bytes: int, element_size: int, on_cpu: bool) -> int:
    """Padded tokens of one batch (prompts and answers) that fit into the free memory, at least one."""
    part = PART_OF_FREE_CPU if on_cpu else PART_OF_FREE
    return max(1, min(LARGEST_BATCH_TOKENS, int(free_bytes * part) // bytes_per_token(config, element_size)))


def free_memory_bytes(device: str) -> int:
    """Bytes that new tensors can take: free on the device and in torch's own cache, or available to a process."""
    import psutil
    import torch

    if device == "cpu":
        return int(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
