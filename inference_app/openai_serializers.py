"""OpenAI's bodies as the API's schema shows them; what is accepted is decided in `ftproject.engine.server_chat`."""

from typing import Any

from rest_framework import serializers

CHAT = {
    "model": "adapter_20260215_143022",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Which digit is shown in the image?"},
                {"type": "image_url", "image_url": {"url": "https://example.com/photo.jpg"}},
            ],
        }
    ],
    "max_tokens": 64,
    "temperature": 0,
}


class ChatCompletionRequestSerializer(serializers.Serializer[Any]):
    model = serializers.CharField(help_text="An adapter's name, or a base model: see /v1/models.")
    messages = serializers.ListField(
        child=serializers.DictField(),
        help_text="Roles system, developer, user, assistant; content a text or parts of type text and image_url "
        "(http(s) URL or data URI; in the user's messages only). The last one is the user's.",
    )
    max_tokens = serializers.IntegerField(required=False, allow_null=True, min_value=1, max_value=8192)
    max_completion_tokens = serializers.IntegerField(required=False, allow_null=True, min_value=1, max_value=8192)
    temperature = serializers.FloatField(required=False, allow_null=True, min_value=0, help_text="0 is greedy.")
    top_p = serializers.FloatField(required=False, allow_null=True)
    min_p = serializers.FloatField(required=False, allow_null=True)
    seed = serializers.IntegerField(required=False, allow_null=True, min_value=0)
    stop = serializers.JSONField(required=False, allow_null=True, help_text="A text or up to 16 of them.")
    stream = serializers.BooleanField(required=False, allow_null=True)
    stream_options = serializers.DictField(required=False, allow_null=True, help_text="include_usage.")
    n = serializers.IntegerField(required=False, allow_null=True, min_value=1, max_value=1)
    user = serializers.CharField(required=False, allow_null=True, help_text="Taken and not used.")


class UsageSerializer(serializers.Serializer[Any]):
    prompt_tokens = serializers.IntegerField(help_text="Image tokens included.")
    completion_tokens = serializers.IntegerField()
    total_tokens = serializers.IntegerField()


class AnswerMessageSerializer(serializers.Serializer[Any]):
    role = serializers.CharField()
    content = serializers.CharField()


class ChoiceSerializer(serializers.Serializer[Any]):
    index = serializers.IntegerField()
    message = AnswerMessageSerializer()
    finish_reason = serializers.CharField(help_text="stop or length.")


class ChatCompletionSerializer(serializers.Serializer[Any]):
    id = serializers.CharField()
    object = serializers.CharField()
    created = serializers.IntegerField()
    model = serializers.CharField()
    choices = ChoiceSerializer(many=True)
    usage = UsageSerializer()
    timings = serializers.DictField(
        child=serializers.FloatField(),
        help_text="Added: load_ms of the model, prefill_ms to the first token, generation_ms in all.",
    )


class ModelSerializer(serializers.Serializer[Any]):
    id = serializers.CharField()
    object = serializers.CharField()
    created = serializers.IntegerField()
    owned_by = serializers.CharField()
    root = serializers.CharField()  # type: ignore[assignment]  # DRF takes declared fields out of the class
    parent = serializers.CharField(allow_null=True, help_text="An adapter's base model.")  # type: ignore[assignment]


class ModelListSerializer(serializers.Serializer[Any]):
    object = serializers.CharField()
    data = ModelSerializer(many=True)  # type: ignore[assignment]
