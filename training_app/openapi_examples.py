"""The user's document's own examples, shown in the OpenAPI schema."""

from typing import Any

START: dict[str, Any] = {
    "model_config_data": {
        "model_name": "unsloth/Qwen3-VL-8B-Instruct-unsloth-bnb-4bit",
        "max_seq_length": 2048,
    },
    "sft_config": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "learning_rate": 2e-4,
        "max_steps": 30,
        "warmup_steps": 5,
        "weight_decay": 0.01,
        "lr_scheduler_type": "linear",
        "max_seq_length": 2048,
        "optim": "adamw_8bit",
        "logging_steps": 1,
        "seed": 3407,
        "fp16": False,
        "bf16": True,
        "use_epochs": False,
    },
    "lora_config": {
        "r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "finetune_vision_layers": True,
        "finetune_language_layers": True,
        "finetune_attention_modules": True,
        "finetune_mlp_modules": True,
    },
}
STATUS: dict[str, Any] = {"status": "training", "current_step": 15, "total_steps": 30, "loss": 0.42}
ADAPTERS: dict[str, Any] = {
    "adapters": [
        {
            "name": "adapter_20260215_143022",
            "path": "/path/to/adapter",
            "created_at": "2026-02-15T14:30:22Z",
        }
    ]
}
