"""How fast requests spend an error budget: the burn rate that the alerts use, for the seconds of the status page."""

from collections.abc import Mapping

# As in the alerts' rules, see docs/alerts.md: requests that should have been answered and were not, and those that say
# nothing about the server.
UNANSWERED = frozenset({"internal", "unavailable", "deadline", "aborted", "overloaded"})
NOT_JUDGED = frozenset(
    {"cancelled", "aborted_receive", "invalid", "not_found", "unauthenticated", "denied", "unsupported"}
)


def burn_rate(bad: float, total: float, objective: float) -> float | None:
    """The ratio of ``bad`` requests among ``total``, over the ratio that ``objective`` (0.99 for 99 %) allows.

    1 spends the budget exactly as fast as allowed, 0.5 half of it. None without requests. ``objective`` is below 1.
    """
    if total <= 0:
        return None
    # 1 - 0.999 is 0.0010000000000000009.
    return bad / total / round(1 - objective, 12)


def unanswered(outcomes: Mapping[str, float], over_quota: float) -> tuple[float, float]:
    """Requests that were not answered, and those that should have been, of ``outcomes``; both are counts or rates.

    ``over_quota`` of the "overloaded" ones exceeded a client's quota, which is that client's doing.
    """
    bad = sum(number for outcome, number in outcomes.items() if outcome in UNANSWERED) - over_quota
    total = sum(number for outcome, number in outcomes.items() if outcome not in NOT_JUDGED) - over_quota
    return max(0.0, bad), max(0.0, total)
