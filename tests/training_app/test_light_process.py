"""The web process previews tokens, plans merges and takes adapters without the ML libraries."""

import os
import subprocess
import sys
from pathlib import Path

from tests.architecture.test_imports import HEAVY

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from pathlib import Path
import django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django.core.files.uploadedfile import SimpleUploadedFile
from tests.training_app.lora_folders import folder_members, write_adapter_folder, zip_of
from tests.training_app.world import Api, load_dataset
folder = Path(sys.argv[1])
load_dataset(folder)
api = Api()
done = [api.get("/api/training/token-preview")]
data = zip_of(folder_members(write_adapter_folder(folder / "drawn")))
done.append(api.client.post("/api/training/adapters/import", {"file": SimpleUploadedFile("drawn.zip", data)}))
done.append(api.post("/api/training/adapters/drawn/merge", {}))
done.append(api.post("/api/training/start", {"dry_run": True}))
assert [answer.status_code for answer in done] == [200, 201, 202, 200], [answer.content for answer in done]
print(",".join(name for name in sys.argv[2].split(",") if name in sys.modules) or "none")
"""


def test_previews_imports_and_merge_plans_load_no_ml_library(tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "DJANGO_SETTINGS_MODULE": "ftproject.settings",
        "QWEN3VL_DATA_DIR": str(tmp_path / "data"),
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), ",".join(HEAVY)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "none"
