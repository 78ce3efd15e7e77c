"""One campaign of schemathesis against the application: its settings, its checks, and what it found."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from schemathesis import engine
from schemathesis.engine import events

from tests.fuzz.world import Application

PHASES = ("examples", "coverage", "fuzzing", "stateful")
PROBLEM = "application/problem+json"
MEMBERS = {"type", "title", "status", "detail", "instance", "code", "hint", "errors"}


@schemathesis.check
def one_error_shape(ctx: Any, response: Any, case: Any) -> None:
    """Every error is a problem; below /v1 it is what OpenAI's clients read."""
    if response.status_code < 400 or case.method == "HEAD":
        return
    content_type = response.headers.get("content-type", [""])[0]
    body = response.json()
    if case.path.startswith("/v1"):
        assert content_type == "application/json", content_type
        assert set(body["error"]) >= {"message", "type", "code", "param"}, body
    else:
        assert content_type == PROBLEM, content_type
        assert set(body) >= MEMBERS, body
        assert body["status"] == response.status_code, body


def campaign_settings(
    *, seed: int, seconds: int | None = None, examples: int | None = None, phases: Sequence[str] = PHASES
) -> dict[str, Any]:
    """schemathesis' own settings; every check but one is on.

    `positive_data_acceptance` is off: the schema cannot say which columns a data set has or which run is finished, so
    a 400 to a body that it allows is no fault.
    """
    limits = {"max-time": seconds} if seconds else {}
    return {
        "seed": seed,
        "cache": {"enabled": False},
        "generation": {"no-shrink": True, "database": "none", **({"max-examples": examples} if examples else {})},
        "phases": {name: {"enabled": name in phases} for name in PHASES},
        "checks": {"positive_data_acceptance": {"enabled": False}},
        **limits,
    }


@dataclass
class Campaign:
    """What was sent and what was found."""

    calls: int = 0
    jobs: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    by_phase: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def note(self, event: Any) -> None:
        if isinstance(event, events.ScenarioFinished):
            self.by_phase[event.phase.value] += len(event.recorder.interactions)
            self.note_checks(event.recorder)
        elif isinstance(event, events.NonFatalError):
            self.errors.append(f"{event.label}: {event.value}")
        elif isinstance(event, events.FatalError):
            raise event.exception

    def note_checks(self, recorder: Any) -> None:
        for nodes in recorder.checks.values():
            for node in nodes:
                if node.failure_info is not None:
                    failure = node.failure_info.failure
                    key = f"{failure.operation} {node.name}"
                    self.failures.setdefault(key, f"{failure}\n{node.failure_info.code_sample}")


def run_campaign(application: Application, settings: dict[str, Any]) -> Campaign:
    config = schemathesis.Config.from_dict(settings)
    schema = schemathesis.openapi.from_wsgi("/api/schema", application, config=config)
    campaign = Campaign()
    for event in engine.from_schema(schema).execute():
        campaign.note(event)
    campaign.calls, campaign.jobs, campaign.statuses = application.calls, application.jobs, application.statuses
    return campaign
