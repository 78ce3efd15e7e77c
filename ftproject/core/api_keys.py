"""API keys: made once, kept as a digest, judged in constant time.

A key is `qwen3vl_<8 hex digits>_<43 characters>`. The first two parts are its prefix: public, and what lists and the
audit trail show. The last one holds 256 random bits, so one round of SHA-256 is as good as any slow hash, and quick
enough for every request.
"""

import hashlib
import hmac
import re
import secrets
from datetime import datetime, timedelta

from django.db.models import Q
from django.utils import timezone

from ftproject.core.errors import ConflictError, NotFoundError, UnauthorizedError
from ftproject.core.models import ApiKey, KeyScope
from ftproject.core.patience import write_if_free

BRAND = "qwen3vl_"
FORM = re.compile(r"(qwen3vl_[0-9a-f]{8})_[A-Za-z0-9_-]{43}")
# What a wrong prefix is compared with, so that it takes as long as a wrong secret.
NOBODYS_DIGEST = "0" * 64
USE_STEP = timedelta(minutes=5)
CREATE_HINT = "Make another with `manage.py api_key create NAME --scope read|run|admin`."


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def create_api_key(*, name: str, scope: KeyScope, expires_at: datetime | None = None) -> tuple[ApiKey, str]:
    """The row, and the key itself, which nothing can show again."""
    prefix = BRAND + secrets.token_hex(4)
    key = f"{prefix}_{secrets.token_urlsafe(32)}"
    row = ApiKey.objects.create(prefix=prefix, digest=digest_of(key), name=name, scope=scope, expires_at=expires_at)
    return row, key


def create_first_key() -> str | None:
    """The key of the first start on a public address; None for ever after, revoked keys included."""
    if ApiKey.objects.exists():
        return None
    return create_api_key(name="first start", scope=KeyScope.ADMIN)[1]


def revoke_api_key(*, prefix: str) -> ApiKey:
    key = ApiKey.objects.filter(prefix=prefix).first()
    if key is None:
        hint = "`manage.py api_key list` shows the prefixes."
        raise NotFoundError(f"There is no key {prefix!r}.", code="api_key_not_found", hint=hint)
    if ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now()) != 1:
        raise ConflictError(
            f"The key {prefix} is revoked already.", code="api_key_revoked", hint="Nothing is to be done."
        )
    key.refresh_from_db()
    return key


def judge_api_key(key: str) -> ApiKey:
    """The row of a key that is good now; UnauthorizedError says why it is not."""
    shape = FORM.fullmatch(key)
    row = ApiKey.objects.filter(prefix=shape[1]).first() if shape else None
    # Whatever is wrong with it, everything else is told to its holder only.
    if not hmac.compare_digest(digest_of(key), row.digest if row else NOBODYS_DIGEST) or row is None:
        raise UnauthorizedError("This API key is not known here.", code="invalid_api_key", hint=CREATE_HINT)
    if row.state == "revoked":
        raise UnauthorizedError(f"The API key {row.prefix} was revoked.", code="revoked_api_key", hint=CREATE_HINT)
    if row.state == "expired":
        raise UnauthorizedError(f"The API key {row.prefix} has expired.", code="expired_api_key", hint=CREATE_HINT)
    return row


def use_is_noted(key: ApiKey) -> bool:
    return key.last_used_at is not None and key.last_used_at > timezone.now() - USE_STEP


def note_use(key: ApiKey) -> None:
    """Sets `last_used_at`, at most once in five minutes whatever the load and however many processes there are."""
    if use_is_noted(key):
        return
    now = timezone.now()
    stale = ApiKey.objects.filter(Q(last_used_at=None) | Q(last_used_at__lte=now - USE_STEP), pk=key.pk)
    write_if_free(f"the last use of {key.prefix}", lambda: stale.update(last_used_at=now))
