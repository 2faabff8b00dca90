"""How sessions share a substation's limit: max-min fairness by water-filling, pure."""

from collections.abc import Sequence


def share(limit_w: int, wanted_w: Sequence[int]) -> list[int]:
    """Power for each session [W, whole], in the order of `wanted_w`; none above its wish, the sum within the limit.

    Max-min fair: whoever wants less than an equal share gets it all, and what that leaves is shared by the others
    (Bertsekas and Gallager, Data Networks, 6.5). A remainder below one watt each stays unused.
    """
    granted = [0] * len(wanted_w)
    left_w, left_sessions = max(0, limit_w), len(wanted_w)
    for place in sorted(range(len(wanted_w)), key=lambda one: wanted_w[one]):
        granted[place] = max(0, min(wanted_w[place], left_w // left_sessions))
        left_w -= granted[place]
        left_sessions -= 1
    return granted
