"""The settings of training and generation: names, defaults, ranges and help, here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field

from ftproject.engine.fields import setting

# Schedulers of transformers that need no further arguments; optimizers that the pinned requirements can run.
SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
OPTIMIZERS = (
    "adamw_8bit",
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_bnb_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "adafactor",
    "sgd",
)
LARGEST_SEED = 2**32 - 1  # numpy's limit, which transformers.set_seed passes on


@dataclass(frozen=True)
class ModelConfig:
    """Which base model, and how much of a row it may see."""

    model_name: str | None = setting(None, help="Base model; null takes the default model of this machine.")
    max_seq_length: int = setting(
        2048,
        min=16,
        max=262_144,
        help="Longest row in tokens, image tokens included; longer rows are skipped.",
    )
    load_in_4bit: bool | None = setting(
        None, help="Load the base quantised to 4 bit; null decides by device and model."
    )
    min_pixels: int | None = setting(
        None,
        min=1024,
        max=40_000_000,
        help="Smaller images are enlarged to this area; null keeps the model's.",
    )
    max_pixels: int | None = setting(
        None, min=1024, max=40_000_000, help="Larger images are shrunk to this area; null keeps the model's."
    )


@dataclass(frozen=True)
class SftSettings:
    """Supervised fine-tuning: the optimizer, its schedule, and what is logged and saved when."""

    per_device_train_batch_size: int = setting(2, min=1, max=1024, help="Rows in one forward pass.")
    gradient_accumulation_steps: int = setting(4, min=1, max=4096, help="Forward passes in one optimizer step.")
    learning_rate: float = setting(2e-4, exclusive_min=0.0, max=1.0, help="Peak learning rate.")
    max_steps: int = setting(30, min=1, max=10_000_000, help="Optimizer steps; not used with use_epochs.")
    warmup_steps: int = setting(5, min=0, max=1_000_000, help="Steps over which the learning rate rises.")
    weight_decay: float = setting(0.01, min=0.0, max=1.0, help="Decoupled weight decay.")
    lr_scheduler_type: str = setting("linear", choices=SCHEDULERS, help="Shape of the learning rate curve.")
    max_seq_length: int | None = setting(
        None, min=16, max=262_144, help="The same as model_config_data.max_seq_length; give one of them."
    )
    optim: str = setting("adamw_8bit", choices=OPTIMIZERS, help="Optimizer; 8-bit ones need a CUDA device.")
    logging_steps: int = setting(1, min=1, max=100_000, help="Steps between two logged losses.")
    seed: int = setting(3407, min=0, max=LARGEST_SEED, help="Seed of the adapter's weights and the row order.")
    fp16: bool = setting(False, help="Mixed precision in float16; needs a CUDA device.")
    bf16: bool = setting(True, help="Mixed precision in bfloat16; falls back where the device has none.")
    use_epochs: bool = setting(False, help="Train num_train_epochs instead of max_steps.")
    num_train_epochs: float = setting(1.0, exclusive_min=0.0, max=1000.0, help="Passes over the rows, with use_epochs.")
    gradient_checkpointing: bool | None = setting(None, help="Trade time for memory; null decides by device and model.")
    max_grad_norm: float = setting(1.0, min=0.0, max=1000.0, help="Gradient clipping; 0 turns it off.")
    eval_steps: int | None = setting(
        None,
        min=1,
        max=1_000_000,
        help="Steps between two losses on the held-out rows; null: at the end only.",
    )
    save_steps: int | None = setting(
        None,
        min=1,
        max=1_000_000,
        help="Steps between two checkpoints; null: every tenth of the run, at least 10 and at most 250 steps apart.",
    )
    save_total_limit: int = setting(2, min=1, max=100, help="Checkpoints kept.")
    early_stopping_patience: int | None = setting(
        None,
        min=1,
        max=1000,
        help="Held-out losses without improvement before stopping; keeps the best adapter. Needs eval_steps.",
    )
    eval_generation_rows: int | None = setting(
        None,
        min=1,
        max=1000,
        help="Held-out rows answered at every eval_steps, for eval_exact_match and eval_token_f1; null: none.",
    )
    group_by_length: bool = setting(False, help="Rows of similar length share a batch: less padding, another order.")
    dataloader_num_workers: int | None = setting(
        None, min=0, max=64, help="Processes that prepare batches; null: 0 on a CPU, up to 4 on CUDA."
    )
    report_to: str = setting(
        "none", choices=("none", "tensorboard"), help="Where the steps are logged besides the run."
    )


@dataclass(frozen=True)
class LoraSettings:
    """The low-rank adapter: its size, and which modules of the model get one."""

    r: int = setting(16, min=1, max=1024, help="Rank of the update matrices.")
    lora_alpha: int = setting(16, min=1, max=4096, help="Scale of the update; it is applied times alpha / r.")
    lora_dropout: float = setting(0.0, min=0.0, exclusive_max=1.0, help="Dropout on the adapter's input.")
    finetune_vision_layers: bool = setting(True, help="Adapt the vision tower.")
    finetune_language_layers: bool = setting(True, help="Adapt the language model.")
    finetune_attention_modules: bool = setting(True, help="Adapt attention projections of the chosen parts.")
    finetune_mlp_modules: bool = setting(True, help="Adapt feed-forward projections of the chosen parts.")


@dataclass(frozen=True)
class TrainingOptions:
    """Which rows are kept out of training."""

    holdout_fraction: float = setting(
        0.0,
        min=0.0,
        max=0.9,
        help="Part of the rows kept out of training; rows sharing an image stay together.",
    )
    holdout_seed: int = setting(0, min=0, max=LARGEST_SEED, help="Seed of the choice of held-out rows.")
    holdout_stratify: bool = setting(
        False, help="Hold out the same part of the rows of each answer; needs holdout_fraction."
    )


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a training run, apart from its rows."""

    model: ModelConfig = field(default_factory=ModelConfig)
    sft: SftSettings = field(default_factory=SftSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    options: TrainingOptions = field(default_factory=TrainingOptions)

    @property
    def max_seq_length(self) -> int:
        """The one length in force: sft_config's where given."""
        return self.sft.max_seq_length or self.model.max_seq_length


@dataclass(frozen=True)
class GenerationParams:
    """How the model's answer is drawn; do_sample false ignores the sampling fields."""

    max_new_tokens: int = setting(256, min=1, max=8192, help="Longest answer in tokens.")
    temperature: float = setting(0.7, min=0.0, max=100.0, help="Sampling temperature; 0 is greedy.")
    top_p: float = setting(0.9, exclusive_min=0.0, max=1.0, help="Nucleus sampling: probability mass kept.")
    min_p: float = setting(0.0, min=0.0, max=1.0, help="Tokens below this part of the best one are dropped.")
    do_sample: bool = setting(True, help="Sample; false takes the most probable token each time.")
    seed: int | None = setting(None, min=0, max=LARGEST_SEED, help="Seed of the sampling; null: not repeatable.")

    @property
    def greedy(self) -> bool:
        """True when the answer does not depend on chance."""
        return not self.do_sample or self.temperature == 0.0


EVALUATION_GENERATION = GenerationParams(do_sample=False, temperature=0.1)
