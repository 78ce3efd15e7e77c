"""The one GPU lease: a row that says who holds the device, taken and given back by conditional updates."""

import uuid
from datetime import timedelta

from django.utils import timezone

from ftproject.core.models import GpuLease
from ftproject.core.processes import process_lives
from ftproject.core.silence import SilenceWatch

LEASE_PK = 1
# Holders beat every 2 s; so much silence, confirmed (`silence`), makes a dead holder.
LEASE_TTL = timedelta(seconds=20)
holders = SilenceWatch(LEASE_TTL.total_seconds())


def acquire_lease(holder: str) -> str | None:
    """The token of the lease if the device was free or its holder dead, else None."""
    now = timezone.now()
    row, _ = GpuLease.objects.get_or_create(pk=LEASE_PK)
    if row.holder and not is_abandoned(row):
        return None
    token = uuid.uuid4().hex
    # The lease must still be the one that was looked at: of two that find it free, one gets it.
    taken = GpuLease.objects.filter(pk=LEASE_PK, token=row.token, heartbeat_at=row.heartbeat_at).update(
        holder=holder, token=token, acquired_at=now, heartbeat_at=now, wanted_by=""
    )
    return token if taken == 1 else None


def is_abandoned(row: GpuLease) -> bool:
    """Whether the holder is gone: its process, where its name says which, or its sign of life."""
    _, _, process = row.holder.partition(":")
    if ":" in process and not process_lives(process):
        return True
    overdue = row.heartbeat_at is None or row.heartbeat_at < timezone.now() - LEASE_TTL
    return holders.is_silent("lease", (row.token, row.heartbeat_at), overdue=overdue)


def beat_lease(token: str) -> bool:
    """Says that the holder lives; False when the lease is somebody else's by now."""
    return GpuLease.objects.filter(pk=LEASE_PK, token=token).update(heartbeat_at=timezone.now()) == 1


def release_lease(token: str) -> bool:
    return GpuLease.objects.filter(pk=LEASE_PK, token=token).update(holder="", token="", heartbeat_at=None) == 1


def pass_lease(holder: str, successor: str) -> bool:
    """Gives the device on to the next job of the same process, token and all; False when somebody waits for it."""
    mine = GpuLease.objects.filter(pk=LEASE_PK, holder=holder, wanted_by="")
    return mine.update(holder=successor, acquired_at=timezone.now()) == 1


def release_holder(holder: str) -> bool:
    """Frees the lease of a holder that is known to be dead."""
    return GpuLease.objects.filter(pk=LEASE_PK, holder=holder).update(holder="", token="", heartbeat_at=None) == 1


def want_lease(holder: str) -> None:
    """Asks the present holder to leave when it can (the model server does; a run does not)."""
    GpuLease.objects.filter(pk=LEASE_PK).exclude(holder=holder).update(wanted_by=holder)


def lease_wanted(token: str) -> bool:
    """True when somebody waits for the lease that `token` holds."""
    return GpuLease.objects.filter(pk=LEASE_PK, token=token).exclude(wanted_by="").exists()


def lease_holder() -> str:
    """The living holder of the device, or an empty string."""
    row = GpuLease.objects.filter(pk=LEASE_PK).exclude(holder="").first()
    return row.holder if row and not is_abandoned(row) else ""
