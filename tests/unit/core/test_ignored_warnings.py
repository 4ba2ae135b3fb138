"""Warnings of other packages that are ignored for a few lines, in several threads."""

from __future__ import annotations

import threading
import warnings

import pytest

from inc_torch.core.user_warning import ignored


def test_only_what_was_named_is_ignored():
    with ignored(FutureWarning, ".*old"):
        warnings.warn("an old thing", FutureWarning, stacklevel=1)
        with pytest.raises(FutureWarning, match="another"):
            warnings.warn("another thing", FutureWarning, stacklevel=1)
    with pytest.raises(FutureWarning, match="old"):
        warnings.warn("an old thing", FutureWarning, stacklevel=1)


def test_a_thread_that_ends_first_does_not_take_the_filters_of_another():
    """Without a lock the first to leave puts back the filters that there were before the second came."""
    inside, leave, errors, before = threading.Event(), threading.Event(), [], list(warnings.filters)

    def first():
        with ignored(FutureWarning):
            inside.set()
            leave.wait(10)

    def second():
        inside.wait(10)
        threading.Timer(0.2, leave.set).start()
        try:
            with ignored(FutureWarning):
                leave.wait(10)
                thread.join(10)
                warnings.warn("old", FutureWarning, stacklevel=1)
        except FutureWarning as error:
            errors.append(error)

    thread = threading.Thread(target=first)
    other = threading.Thread(target=second)
    thread.start()
    other.start()
    other.join(30)
    assert not other.is_alive()
    assert errors == []
    assert list(warnings.filters) == before
