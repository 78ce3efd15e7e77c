"""Query strings and bodies: what DRF would let pass silently is an error that names the field."""

from typing import Any

import pytest
from django.http import QueryDict
from rest_framework import serializers

from ftproject.core.serializers import StrictIntegerField, StrictSerializer
from ftproject.core.views import check


class ListQuery(StrictSerializer):
    status = serializers.ChoiceField(["queued", "error"], required=False)
    page = StrictIntegerField(default=1)
    words = serializers.CharField(required=False, allow_blank=True)


@pytest.mark.parametrize("query", ["status=", "page=", "page=1&page=", "status=&words=a"])
def test_a_blank_parameter_is_refused_and_not_taken_for_one_left_out(query: str) -> None:
    with pytest.raises(serializers.ValidationError) as refusal:
        check(ListQuery, QueryDict(query))
    details: Any = refusal.value.detail
    assert [detail.code for messages in details.values() for detail in messages] == ["blank"]


def test_a_parameter_that_may_be_blank_is_blank() -> None:
    assert check(ListQuery, QueryDict("words=")) == {"page": 1, "words": ""}


def test_an_unknown_field_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(serializers.ValidationError, match=r"Did you mean 'status'\?"):
        check(ListQuery, {"statu": "queued"})


def test_blank_and_unknown_fields_are_told_at_once() -> None:
    with pytest.raises(serializers.ValidationError) as refusal:
        check(ListQuery, QueryDict("pag=1&status="))
    codes: Any = refusal.value.get_codes()
    assert set(codes) == {"pag", "status"}
