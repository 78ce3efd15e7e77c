"""The live page at `/`: health, runs and events in a browser, from this API alone."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe


@require_safe
def live_page(request: HttpRequest) -> HttpResponse:
    """One static page that loads nothing from elsewhere; its script reads the API and `/ws`."""
    response = render(request, "system/live.html")
    # Everything stands in the page itself; nothing else may be loaded into it, and only this server asked.
    response["Content-Security-Policy"] = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return response
