"""What inference requests may hold and what its answers look like."""

from dataclasses import asdict
from typing import Any

from rest_framework import serializers

from ftproject.core.serializers import StrictCharField, StrictIntegerField, StrictSerializer
from inference_app.chat_format import ChatAnswer
from inference_app.services import AdapterAnswer, ComparedAnswers, GeneratedAnswer
from training_app.fields import AdapterReferenceField, GenerationParamsField

LONGEST_PROMPT = 100_000
LONGEST_WAIT = 600
MAX_IMAGES = 16
MAX_ADAPTERS = 8


class GenerateSerializer(StrictSerializer):
    prompt = StrictCharField(max_length=LONGEST_PROMPT, trim_whitespace=False)
    image_urls = serializers.ListField(
        child=StrictCharField(),
        max_length=MAX_IMAGES,
        required=False,
        allow_null=True,
        default=list,
        help_text="http(s) URLs or data:image/...;base64, URIs.",
    )
    adapter_path = AdapterReferenceField(
        required=False, allow_null=True, default=None, help_text="Path, name or id of an adapter; null: the base."
    )
    generation_params = GenerationParamsField(required=False, allow_null=True, default=None)
    model_name = StrictCharField(
        max_length=500, required=False, allow_null=True, default=None, help_text="Base model; null: the default."
    )
    wait_seconds = StrictIntegerField(
        min_value=0,
        max_value=LONGEST_WAIT,
        required=False,
        default=0,
        help_text="How long to wait for the GPU while a run has it, instead of 409 gpu_busy.",
    )

    def validate_prompt(self, value: str) -> str:
        if not value.strip():
            raise serializers.ValidationError("May not be blank.", code="blank")
        return value


class CompareSerializer(GenerateSerializer):
    adapter_path = AdapterReferenceField(
        required=False, help_text="Path, name or id of the adapter to compare with its base."
    )
    adapter_paths = serializers.ListField(
        child=AdapterReferenceField(),
        min_length=1,
        max_length=MAX_ADAPTERS,
        required=False,
        help_text="Several adapters of one base instead of adapter_path.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        one, several = attrs.pop("adapter_path", None), attrs.pop("adapter_paths", None)
        if (one is None) == (several is None):
            message = "Give adapter_path, or adapter_paths." if one is None else "Give adapter_path or adapter_paths."
            raise serializers.ValidationError({"adapter_path": serializers.ErrorDetail(message, code="required")})
        return attrs | {"adapter_paths": several or [one]}


class GeneratedSerializer(serializers.Serializer[Any]):
    output = serializers.CharField()
    model_type = serializers.CharField(help_text="base or finetuned.")
    generation_time_ms = serializers.FloatField(help_text="Generation alone.")
    prefill_time_ms = serializers.FloatField(help_text="The part of it before the first token.")
    load_time_ms = serializers.FloatField(help_text="What this request waited for loading; 0 when all was loaded.")
    prompt_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()
    finish_reason = serializers.CharField(help_text="stop, or length when max_new_tokens cut it off.")
    model_name = serializers.CharField()
    adapter = serializers.CharField(allow_null=True)
    seed = serializers.IntegerField(allow_null=True, help_text="Send it to draw the same answer again; null: greedy.")


class DiffPartSerializer(serializers.Serializer[Any]):
    op = serializers.ChoiceField(["equal", "replace", "delete", "insert"])
    base = serializers.CharField()
    finetuned = serializers.CharField()


class AdapterAnswerSerializer(serializers.Serializer[Any]):
    adapter = serializers.CharField()
    output = serializers.CharField()
    generation_time_ms = serializers.FloatField(help_text="Generation alone.")
    prefill_time_ms = serializers.FloatField()
    prompt_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()
    finish_reason = serializers.CharField()
    diff = DiffPartSerializer(many=True, allow_null=True, help_text="Against the base; null: too long to compare.")


class ComparedSerializer(serializers.Serializer[Any]):
    """`finetuned_*`, `adapter` and `diff` are the first adapter's; `answers` has all of them."""

    base_output = serializers.CharField()
    finetuned_output = serializers.CharField()
    base_time_ms = serializers.FloatField(help_text="Generation alone.")
    finetuned_time_ms = serializers.FloatField(help_text="Generation alone.")
    load_time_ms = serializers.FloatField()
    base_prompt_tokens = serializers.IntegerField()
    base_completion_tokens = serializers.IntegerField()
    base_finish_reason = serializers.CharField(help_text="stop, or length when max_new_tokens cut it off.")
    finetuned_prompt_tokens = serializers.IntegerField()
    finetuned_completion_tokens = serializers.IntegerField()
    finetuned_finish_reason = serializers.CharField(help_text="stop, or length when max_new_tokens cut it off.")
    model_name = serializers.CharField()
    adapter = serializers.CharField()
    seed = serializers.IntegerField(allow_null=True, help_text="All answers were drawn with it; null when greedy.")
    diff = DiffPartSerializer(many=True, allow_null=True)
    answers = AdapterAnswerSerializer(many=True)


def describe_answer(result: GeneratedAnswer) -> dict[str, Any]:
    return {
        "output": result.answer.text,
        "model_type": "finetuned" if result.adapter else "base",
        **timings_and_counts(result.answer),
        "load_time_ms": result.load_time_ms,
        "model_name": result.model_name,
        "adapter": result.adapter,
        "seed": result.seed,
    }


def timings_and_counts(answer: ChatAnswer) -> dict[str, Any]:
    return {
        "generation_time_ms": answer.generation_ms,
        "prefill_time_ms": answer.prefill_ms,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "finish_reason": answer.finish_reason,
    }


def describe_comparison(result: ComparedAnswers) -> dict[str, Any]:
    answers = [describe_adapter_answer(item) for item in result.finetuned]
    body: dict[str, Any] = {
        "load_time_ms": result.load_time_ms,
        "model_name": result.model_name,
        "adapter": answers[0]["adapter"],
        "seed": result.seed,
        "diff": answers[0]["diff"],
        "answers": answers,
    }
    for side, answer in (("base", result.base), ("finetuned", result.finetuned[0].answer)):
        body |= {
            f"{side}_output": answer.text,
            f"{side}_time_ms": answer.generation_ms,
            f"{side}_prompt_tokens": answer.prompt_tokens,
            f"{side}_completion_tokens": answer.completion_tokens,
            f"{side}_finish_reason": answer.finish_reason,
        }
    return body


def describe_adapter_answer(item: AdapterAnswer) -> dict[str, Any]:
    diff = None if item.diff is None else [asdict(part) for part in item.diff]
    return {"adapter": item.adapter, "output": item.answer.text, **timings_and_counts(item.answer), "diff": diff}
