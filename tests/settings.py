"""Settings of the test session: the product's own, in a data directory and an environment of the session's own.

pytest-django reads the settings before any conftest, so the environment is cleaned here.
"""

import os
import tempfile

for name in [name for name in os.environ if name.startswith("QWEN3VL_") and name != "QWEN3VL_DATABASE_URL"]:
    del os.environ[name]
os.environ["QWEN3VL_DATA_DIR"] = tempfile.mkdtemp(prefix="qwen3vl-tests-")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Child processes of the tests are the product itself and choose their own data directory.
os.environ["DJANGO_SETTINGS_MODULE"] = "ftproject.settings"

from ftproject.settings import *  # noqa: E402, F403

if DATABASES["default"]["ENGINE"].endswith("sqlite3"):  # noqa: F405
    # A file, as in the product: threads of an in-memory database get "table is locked" where a file makes them wait.
    DATABASES["default"]["TEST"] = {"NAME": os.path.join(os.environ["QWEN3VL_DATA_DIR"], "test.sqlite3")}  # noqa: F405
    DATABASES["default"]["OPTIONS"]["init_command"] += "PRAGMA synchronous=OFF;"  # noqa: F405

# The admin's tests log in a hundred times; PBKDF2 is made to take a quarter of a second.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
