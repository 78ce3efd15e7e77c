"""Which scope of an API key each route asks for: the one table, beside the routes that it names.

`read` looks, `run` makes something or computes, `admin` takes something away, or lets something in that is computed
with. A HEAD counts as its GET. What is not in the table asks for `admin`; a test compares it with the URL conf.
"""

from django.urls import resolve

from ftproject.core.models import KeyScope

READ, RUN, ADMIN = KeyScope.READ, KeyScope.RUN, KeyScope.ADMIN

ROUTE_SCOPES: dict[tuple[str, str], KeyScope] = {
    ("GET", "live"): READ,
    ("GET", "schema"): READ,
    ("GET", "docs"): READ,
    ("GET", "system-health"): READ,
    ("GET", "system-gpu"): READ,
    ("GET", "system-model-status"): READ,
    ("POST", "system-unload-model"): ADMIN,
    ("GET", "system-audit"): ADMIN,
    ("GET", "datasets-list"): READ,
    ("GET", "datasets-detail"): READ,
    ("DELETE", "datasets-detail"): ADMIN,
    ("GET", "datasets-columns"): READ,
    ("GET", "datasets-info"): READ,
    ("GET", "datasets-mapping"): READ,
    ("POST", "datasets-mapping"): RUN,
    ("POST", "datasets-preview"): READ,
    ("GET", "datasets-conversations"): READ,
    ("POST", "datasets-upload"): RUN,
    ("POST", "datasets-activate"): RUN,
    ("POST", "datasets-images"): RUN,
    ("GET", "row-images-list"): READ,
    ("GET", "row-images-detail"): READ,
    ("GET", "prefetch-list"): READ,
    ("POST", "prefetch-list"): RUN,
    ("GET", "prefetch-detail"): READ,
    ("GET", "prefetch-bad-rows"): READ,
    ("GET", "prefetch-bad-rows-csv"): READ,
    ("POST", "prefetch-stop"): RUN,
    # Counts every token of every row in a process of its own: a job, though its answer only tells.
    ("POST", "preflight-list"): RUN,
    ("GET", "preflight-detail"): READ,
    ("POST", "preflight-stop"): RUN,
    ("POST", "training-start"): RUN,
    ("GET", "training-status"): READ,
    ("POST", "training-stop"): RUN,
    ("GET", "training-schema"): READ,
    ("GET", "training-runs-list"): READ,
    ("GET", "training-runs-detail"): READ,
    ("DELETE", "training-runs-detail"): ADMIN,
    ("POST", "training-runs-stop"): RUN,
    ("POST", "training-resume-resume"): RUN,
    ("DELETE", "training-resume-checkpoints"): ADMIN,
    ("GET", "training-reports-metrics"): READ,
    ("GET", "training-reports-events"): READ,
    ("GET", "training-reports-log"): READ,
    ("GET", "training-reports-diff"): READ,
    ("GET", "token-preview-list"): READ,
    ("POST", "token-preview-list"): READ,
    ("GET", "adapters-list"): READ,
    ("GET", "adapters-detail"): READ,
    ("DELETE", "adapters-detail"): ADMIN,
    ("GET", "adapters-download"): READ,
    # Weights of a stranger, which every later answer is computed with.
    ("POST", "adapter-import-take"): ADMIN,
    ("POST", "adapter-merge-merge"): RUN,
    ("GET", "merges-list"): READ,
    ("GET", "merges-detail"): READ,
    ("POST", "merges-stop"): RUN,
    ("DELETE", "merges-detail"): ADMIN,
    ("POST", "evaluation-run"): RUN,
    ("GET", "evaluation-status"): READ,
    ("POST", "evaluation-stop"): RUN,
    ("GET", "evaluation-runs-list"): READ,
    ("GET", "evaluation-runs-detail"): READ,
    ("DELETE", "evaluation-runs-detail"): ADMIN,
    ("GET", "evaluation-runs-samples"): READ,
    ("POST", "evaluation-runs-stop"): RUN,
    ("POST", "evaluation-resume-resume"): RUN,
    ("GET", "evaluation-export"): READ,
    ("POST", "evaluation-compare-list"): READ,
    ("GET", "evaluation-compare-export"): READ,
    ("POST", "inference-generate"): RUN,
    ("POST", "inference-compare"): RUN,
    ("POST", "openai-chat-completions-list"): RUN,
    ("GET", "openai-models-list"): READ,
    ("GET", "openai-models-detail"): READ,
    ("GET", "sessions-list"): READ,
    ("POST", "sessions-list"): RUN,
    ("GET", "sessions-detail"): READ,
    ("PATCH", "sessions-detail"): RUN,
    ("DELETE", "sessions-detail"): ADMIN,
    ("POST", "sessions-save-config"): RUN,
    ("POST", "sessions-clone"): RUN,
    ("POST", "sessions-start"): RUN,
    ("GET", "sessions-export"): READ,
    ("POST", "sessions-import"): ADMIN,
}


def scope_of_request(method: str, path: str) -> KeyScope:
    """The scope that a key needs. Resolver404 for an address that leads nowhere, which must not pass for harmless."""
    return scope_of_route(method, resolve(path).view_name)


def scope_of_route(method: str, view_name: str) -> KeyScope:
    if method == "OPTIONS":  # describes the route and runs nothing of it
        return READ
    return ROUTE_SCOPES.get(("GET" if method == "HEAD" else method, view_name), ADMIN)
