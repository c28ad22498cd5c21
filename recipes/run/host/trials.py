"""Which number of threads is quickest: tried on the steps of a training themselves, at its start and again later."""

from collections import deque
from statistics import median

WARM_UP = 4  # steps that allocate, record and compile
PAIRS = 4  # steps of each count in a trial, in turns
BETTER = 0.92  # a count takes another's place where its steps are this much quicker
CHANGED = 1.4  # steps that have become this much slower or quicker are reason for a trial at once
SHORTEST, LONGEST = 10.0, 160.0  # seconds between two trials; each that changes nothing doubles them
COST = 0.02  # share of the time that trials may lose, where that makes the pause longer


def ladder(most: int) -> list[int]:
    """The counts that are worth trying, from the most down: all but one core, three quarters, halves.

    >>> ladder(2), ladder(16)
    ([2, 1], [16, 15, 12, 8, 4, 2, 1])
    """
    counts = {most, most - 1, 3 * most // 4}
    while most > 1:
        most //= 2
        counts.add(most)
    return sorted(counts - {0}, reverse=True)


class Trials:
    """Decides from the seconds of each step with how many threads the next one is made.

    A trial makes steps with the count in use and with one near it, in turns, and compares their medians. One that is
    lost is not made again for a while, twice as long each time, and long enough for what it lost to be little; where
    steps become slower or quicker, it is made at once.

    Args:
        most: how many threads there may be.

    >>> trials = Trials(2)
    >>> for step in range(40):  # each thread more makes a step slower, as on a busy machine
    ...     trials.step_took(0.1 * trials.count, now=0.1 * step)
    >>> trials.chosen
    1
    """

    def __init__(self, most: int) -> None:
        self.chosen = most
        self.seconds: dict[int, float] = {}  # a step's median by count, of the last trial
        self._counts = ladder(most)
        self._plan: deque[int] = deque()  # counts of the steps that are left of a trial
        self._taken: dict[int, list[float]] = {}
        self._to_try: list[int] = []
        self._recent: deque[float] = deque(maxlen=2 * PAIRS)
        self._steps = 0
        self._tried: float | None = None  # when the last trial ended
        self._pause, self._lost = SHORTEST, 0.0

    @property
    def count(self) -> int:
        """With how many threads the next step is made."""
        return self._plan[0] if self._plan else self.chosen

    def step_took(self, seconds: float, now: float) -> None:
        """Take a step's time into account.

        Args:
            seconds: that it took, with ``count`` threads.
            now: in seconds, of a clock that only goes on.
        """
        self._steps += 1
        if self._steps <= WARM_UP or len(self._counts) == 1:
            return
        if self._plan:
            self._taken.setdefault(self._plan.popleft(), []).append(seconds)
            if not self._plan:
                self._decide(now)
        else:
            self._recent.append(seconds)
            if self._due(now):
                self._to_try, self._lost = self._neighbours(), 0.0
                self._begin()

    def _due(self, now: float) -> bool:
        if self._tried is None:
            return True
        rested, changed = now - self._tried, 1.0
        if len(self._recent) == self._recent.maxlen:
            changed = median(self._recent) / self.seconds[self.chosen]
        return rested >= self._pause or (max(changed, 1 / changed) > CHANGED and rested >= SHORTEST / 2)

    def _neighbours(self) -> list[int]:
        at = self._counts.index(self.chosen)
        return [*self._counts[at + 1 : at + 4], *self._counts[max(at - 1, 0) : at]]

    def _begin(self) -> None:
        other = self._to_try.pop(0)
        self._taken = {}
        self._plan = deque([self.chosen, other] * PAIRS)

    def _decide(self, now: float) -> None:
        self.seconds = {count: median(taken) for count, taken in self._taken.items()}
        [other] = self.seconds.keys() - {self.chosen}
        self._lost += sum(self._taken[other]) - sum(self._taken[self.chosen])
        if self.seconds[other] < BETTER * self.seconds[self.chosen]:
            left = self.chosen
            self.chosen, self._pause = other, SHORTEST / 2
            self._to_try = [count for count in self._neighbours() if (count < other) == (other < left)]  # onwards
        if self._to_try:
            self._begin()
            return
        self._tried, self._pause = now, max(min(2 * self._pause, LONGEST), self._lost / COST)
        self._recent.clear()
