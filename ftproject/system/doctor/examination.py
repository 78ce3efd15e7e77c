"""Runs every check, and the remedies that are safe."""

import logging
from collections.abc import Iterator, Sequence

from django.db import DatabaseError

from ftproject.system.doctor import database, leftovers, machine, stored, work
from ftproject.system.doctor.findings import Check, Finding

logger = logging.getLogger(__name__)

OF_THE_MACHINE: Sequence[Check] = (
    machine.check_folders,
    machine.check_disk,
    machine.check_secret,
    machine.check_packages,
    machine.check_gpu,
)
OF_THE_ROWS: Sequence[Check] = (
    work.check_server,
    work.check_runs,
    work.check_lease,
    work.check_messages,
    work.check_flags,
    stored.check_adapters,
    stored.check_datasets,
    stored.check_archive_images,
    stored.check_merged_models,
    leftovers.check_half_written,
    leftovers.check_run_folders,
    leftovers.check_tables,
    leftovers.check_adapter_folders,
    leftovers.check_model_folders,
)


def examine() -> Iterator[Finding]:
    """Everything that is to be said of this data directory; a database that is not sound is asked nothing more."""
    for check in OF_THE_MACHINE:
        yield from made(check)
    of_the_database = list(made(database.check_database))
    yield from of_the_database
    if not any(finding.level == "error" for finding in of_the_database):
        for check in OF_THE_ROWS:
            yield from made(check)


def made(check: Check) -> Iterator[Finding]:
    """A check that fails itself is a finding, and the others go on."""
    try:
        yield from check()
    except (OSError, DatabaseError) as error:
        logger.debug("%s failed", check.__name__, exc_info=True)
        name = check.__name__.removeprefix("check_").replace("_", " ")
        remedy = "Look at the rights of the data directory, and run it again with QWEN3VL_LOG_LEVEL=DEBUG."
        yield Finding("error", "check_failed", f"Looking at {name} failed: {error}", remedy)


def fix(findings: Sequence[Finding]) -> list[str]:
    """What was done; a fix that fails says so, and the next is tried."""
    done = []
    for finding in findings:
        if finding.fix is not None:
            try:
                done.append(finding.fix())
            except (OSError, DatabaseError) as error:
                done.append(f"{finding.code} could not be fixed: {error}")
    return done
