"""The inference server of the settings, as the engine takes it."""

from django.conf import settings

from ftproject.engine.remote import RemoteSettings


def remote_settings() -> RemoteSettings | None:
    """The server of QWEN3VL_INFERENCE_URL that answers in the place of ours, or None."""
    if not settings.INFERENCE_URL:
        return None
    return RemoteSettings(
        url=settings.INFERENCE_URL,
        key=settings.INFERENCE_KEY,
        adapters_dir=settings.INFERENCE_ADAPTERS_DIR or None,
        seconds=float(settings.INFERENCE_TIMEOUT_SECONDS),
    )
