"""Whether somebody works on the gpu queue right now."""

import logging

logger = logging.getLogger(__name__)


def queue_worker_seen() -> bool:
    """True while a gpu cluster's pulse (written every half second, kept for 3 s) stands in the shared cache.

    A cluster that is stopping still counts: it may be supervising a run. Never raises, because it answers for health.
    """
    from django_q.conf import Conf
    from django_q.status import Stat

    try:
        return any(stat.workers and str(stat.status) != str(Conf.STOPPED) for stat in Stat.get_all())
    except Exception:  # a half-written cache file, a pulse pickled by another version
        logger.warning("the queue's pulse could not be read", exc_info=True)
        return False
