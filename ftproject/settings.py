"""Settings: embedded defaults that need nothing installed, every choice a QWEN3VL_* variable (table in the README)."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from ftproject.conf import env_bool, env_int, env_list, env_text, read_or_create_secret
from ftproject.database import database_settings

BASE_DIR = Path(__file__).resolve().parent.parent
VERSION = "0.1.0"

DATA_DIR = Path(env_text("DATA_DIR") or BASE_DIR / "data").resolve()
DATA_DIR.mkdir(parents=True, exist_ok=True)

DEBUG = env_bool("DEBUG", default=False)
SECRET_KEY = read_or_create_secret(DATA_DIR / "secret_key")
HOST = env_text("HOST", "127.0.0.1")
PORT = env_int("PORT", 8000)
# The gate (core/gate.py) decides by peer, Host and key who may come in: a request with a key may name any host, since
# a proxy's name is not known here, and a second list would answer 400 where the gate says what to do.
ALLOWED_HOSTS = ["*"]
# Names under which the admin may be reached beside localhost and addresses; behind TLS its forms come from there.
ADMIN_HOSTS = frozenset(name.lower() for name in env_list("ADMIN_HOSTS"))
CSRF_TRUSTED_ORIGINS = [f"https://{name}" for name in sorted(ADMIN_HOSTS)]
# What our own commands send to a server elsewhere (`generate --url`, `demo --url`).
API_KEY = env_text("API_KEY")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "channels",
    "django_q",
    "axes",
    "ftproject.core",
    "datasets_app",
    "training_app",
    "evaluation_app",
    "inference_app",
    "sessions_app",
    "ftproject.system",
]

# Views run as WSGI threads (asgi.py), where this usual stack costs next to nothing; under ASGI it doubled a request.
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "ftproject.system.audit_middleware.AuditMiddleware",
    "ftproject.core.middleware.ProblemMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",
]

# The admin's login: five wrong passwords for a name from one address end the trying for a quarter of an hour. By both,
# because a name alone would let strangers lock its owner out from everywhere.
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_DISABLE_ACCESS_LOG = True  # logins that worked stand in the audit trail
AXES_VERBOSE = False
AXES_ALLOWED_CORS_ORIGINS = "null"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]

ROOT_URLCONF = "ftproject.urls"
ASGI_APPLICATION = "ftproject.asgi.application"
WSGI_APPLICATION = "ftproject.wsgi.application"
APPEND_SLASH = False

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES: dict[str, Any] = {"default": database_settings(env_text("DATABASE_URL"), DATA_DIR)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# django-q2 publishes its cluster's pulse through the cache; only a cache that processes share lets health see it.
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "queue": {
        "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
        "LOCATION": DATA_DIR / "cache" / "queue",
    },
}

GPU_CLUSTER = "gpu"
Q_CLUSTER: dict[str, Any] = {
    "name": "default",
    "orm": "default",
    "cache": "queue",
    "workers": 1,
    "poll": 0.2,
    "catch_up": False,
    "scheduler": False,
    "log_level": "WARNING",
    "timeout": 600,
    "retry": 2000,
    # In the base block because the enqueuing process stamps them into each task.
    "max_attempts": 1,
    "ack_failures": True,
    "ALT_CLUSTERS": {
        GPU_CLUSTER: {
            "workers": 1,
            "queue_limit": 1,
            "bulk": 1,
            "recycle": 1,
            "poll": 0.2,
            "timeout": None,
            # The ORM broker hands a running task out again after `retry` seconds: longer than any run.
            "retry": 1_000_000,
        }
    },
}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_PARSER_CLASSES": ["ftproject.core.parsers.StrictJSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "ftproject.core.negotiation.JsonAnyway",
    "DEFAULT_SCHEMA_CLASS": "ftproject.core.openapi.ProblemAutoSchema",
    "EXCEPTION_HANDLER": "ftproject.core.problem.exception_handler",
    "STRICT_JSON": True,
    "URL_FORMAT_OVERRIDE": None,  # ?format=csv belongs to the export route
}

SPECTACULAR_SETTINGS = {
    "TITLE": "Qwen3-VL fine-tuning",
    "DESCRIPTION": "From a CSV to a LoRA adapter of Qwen3-VL, and proof whether it helped.",
    "VERSION": VERSION,
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "POSTPROCESSING_HOOKS": [
        "ftproject.core.openapi.add_error_components",
        "ftproject.core.openapi.strip_trailing_slashes",
    ],
    "SORT_OPERATIONS": True,
}

STATIC_URL = "static/"
WHITENOISE_USE_FINDERS = True

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True

MAX_UPLOAD_MB = env_int("MAX_UPLOAD_MB", 2048)
MAX_BODY_MB = env_int("MAX_BODY_MB", 32)  # JSON bodies; images may travel in them as data URIs
DATA_UPLOAD_MAX_MEMORY_SIZE = MAX_BODY_MB * 1024 * 1024
FILE_UPLOAD_TEMP_DIR = DATA_DIR / "tmp"
FILE_UPLOAD_TEMP_DIR.mkdir(exist_ok=True)

DEFAULT_MODEL_NAME = env_text("DEFAULT_MODEL_NAME") or None
DEFAULT_MAX_SEQ_LENGTH = env_int("DEFAULT_MAX_SEQ_LENGTH", 2048)
BACKEND = env_text("BACKEND", "auto")
EXECUTOR = env_text("EXECUTOR", "local")
INFERENCE_IDLE_SECONDS = env_int("INFERENCE_IDLE_SECONDS", 600)
INFERENCE_TIMEOUT_SECONDS = env_int("INFERENCE_TIMEOUT_SECONDS", 900)
INFERENCE_URL = env_text("INFERENCE_URL")
INFERENCE_KEY = env_text("INFERENCE_KEY")
INFERENCE_ADAPTERS_DIR = env_text("INFERENCE_ADAPTERS_DIR")
IMAGE_ALLOWED_HOSTS = env_list("IMAGE_ALLOWED_HOSTS")
IMAGE_MAX_MB = env_int("IMAGE_MAX_MB", 20)
IMAGE_TIMEOUT_SECONDS = env_int("IMAGE_TIMEOUT_SECONDS", 15)
IMAGE_CONCURRENCY = env_int("IMAGE_CONCURRENCY", 16)
IMAGE_HOST_CONCURRENCY = env_int("IMAGE_HOST_CONCURRENCY", 8)
IMAGE_RETRY_SECONDS = env_int("IMAGE_RETRY_SECONDS", 600, minimum=0)
EVALUATION_BATCH_SIZE = env_int("EVALUATION_BATCH_SIZE", 128)
STOP_GRACE_SECONDS = env_int("STOP_GRACE_SECONDS", 12)

TESTING = "pytest" in sys.modules

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": env_text("LOG_LEVEL", "INFO").upper()},
    "loggers": {
        "django.request": {"level": "ERROR"},
        "django-q": {"level": "WARNING"},
        "httpx": {"level": "WARNING"},
        "httpcore": {"level": "WARNING"},
    },
}
