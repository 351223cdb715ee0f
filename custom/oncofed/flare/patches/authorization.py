"""Add checks to FLARE's authorizer.

FLARE 2.9.0 keeps one authorizer for the process and offers no setting for it: replaces
``AuthorizationService.the_authorizer``.
"""

from __future__ import annotations

from collections.abc import Callable

from nvflare.fuel.sec.authz import AuthorizationService, Authorizer


def wrap_authorizer(wrap: Callable[[Authorizer], Authorizer]) -> None:
    """Replace the process's authorizer, if it has one.

    Args:
        wrap: given FLARE's authorizer, returns the one to use.
    """
    authorizer = AuthorizationService.get_authorizer()
    if authorizer:
        AuthorizationService.the_authorizer = wrap(authorizer)
