"""The one GPU lease: a row that says who holds the device, taken and given back by conditional updates."""

import uuid
from datetime import timedelta

from django.db.models import Q
from django.utils import timezone

from ftproject.core.models import GpuLease

LEASE_PK = 1
# Holders beat every 2 s; five missed beats and a margin for a busy machine make a dead holder.
LEASE_TTL = timedelta(seconds=20)


def acquire_lease(holder: str) -> str | None:
    """The token of the lease if the device was free or its holder dead, else None."""
    now = timezone.now()
    GpuLease.objects.get_or_create(pk=LEASE_PK)
    token = uuid.uuid4().hex
    free = Q(holder="") | Q(heartbeat_at__lt=now - LEASE_TTL)
    taken = GpuLease.objects.filter(free, pk=LEASE_PK).update(
        holder=holder, token=token, acquired_at=now, heartbeat_at=now, wanted_by=""
    )
    return token if taken == 1 else None


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
    row = GpuLease.objects.filter(pk=LEASE_PK, heartbeat_at__gte=timezone.now() - LEASE_TTL).first()
    return row.holder if row else ""
