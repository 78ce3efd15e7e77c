"""The settings of a run in one import: defaults, the checked reading of a request, the device's rules."""

from ftproject.engine.config_parsing import (
    from_dict,
    json_schema,
    nest_flat_settings,
    parse_generation_params,
    parse_training_config,
    to_dict,
)
from ftproject.engine.device_rules import (
    ALLOWED_HUB_MODELS,
    GPU_MODEL_NAME,
    TINY_MODEL_NAME,
    TINY_MODEL_PATH,
    DeviceFacts,
    EffectiveConfig,
    choose_backend,
    four_bit,
    resolve_model,
    resolve_training_config,
)
from ftproject.engine.fields import ConfigError, ConfigProblem
from ftproject.engine.hyperparameters import (
    EVALUATION_GENERATION,
    GenerationParams,
    LoraSettings,
    ModelConfig,
    SftSettings,
    TrainingConfig,
    TrainingOptions,
)

__all__ = [
    "ALLOWED_HUB_MODELS",
    "EVALUATION_GENERATION",
    "GPU_MODEL_NAME",
    "TINY_MODEL_NAME",
    "TINY_MODEL_PATH",
    "ConfigError",
    "ConfigProblem",
    "DeviceFacts",
    "EffectiveConfig",
    "GenerationParams",
    "LoraSettings",
    "ModelConfig",
    "SftSettings",
    "TrainingConfig",
    "TrainingOptions",
    "choose_backend",
    "four_bit",
    "from_dict",
    "json_schema",
    "nest_flat_settings",
    "parse_generation_params",
    "parse_training_config",
    "resolve_model",
    "resolve_training_config",
    "to_dict",
]
