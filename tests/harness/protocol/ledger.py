"""The ledger of the protocol's model: the product's own statements on SQLite in memory, behind a network that loses.

Each call is sent, applied and answered at three times, and each of these may be late or never be.
"""

from harness.memory_ledger import START_MS, MemoryDatabase

from services.errors import LedgerUnavailable

GIVES_UP_AFTER_S = (5.0, 10.0)
"""The committer's deadline: for what has not begun, and for what has."""


class ModelLedger(MemoryDatabase):
    """One database; its clock serves deadlines and may step, and a broken variant rewrites statements."""

    def __init__(self, timeline, rewritten):
        super().__init__(self.now_ms, rewritten)
        self._timeline = timeline
        self.clock_steps_ms = 0
        self.is_out = False
        self.notes = {}
        """What a broken variant writes beside the rows."""
        self.judge = None
        """Sees every commit, before and after."""

    def now_ms(self):
        return START_MS + self.clock_steps_ms + round(self._timeline.now_s * 1000)

    def commit(self, operation, rows, sent_at_s):
        before = self.judge.before_commit(operation)
        answer = super().commit(operation, rows)
        self.judge.after_commit(operation, before, answer, sent_at_s)
        return answer


class Network:
    """How calls to the ledger fare; the chances are those of one run, and none once the faults are over."""

    def __init__(self, rng, slow):
        self._rng = rng
        self._slow = slow
        self.latency_s = rng.choice((0.005, 0.02, 0.1))
        self.loses_request = rng.choice((0, 0, 0.01))
        self.loses_reply = rng.choice((0, 0.01, 0.05))
        self.is_late = rng.choice((0, 0.01, 0.05))

    @property
    def is_fair(self):
        """Whether a sweep, which asks seven times, mostly reaches its end."""
        return self.loses_request + self.loses_reply + self.is_late < 0.02

    def heal(self):
        self.latency_s = 0.005
        self.loses_request = self.loses_reply = self.is_late = 0
        self._slow = {}

    def one_way_s(self, where):
        chance, least_s, most_s = self._slow.get(where, (0, 0, 0))
        if self._rng.random() < chance:
            return self._rng.uniform(least_s, most_s)
        late = self._rng.random() < self.is_late
        return self._rng.uniform(0.2, 8.0) if late else self._rng.expovariate(1 / self.latency_s)

    def keeps(self, chance_of_loss):
        return self._rng.random() >= chance_of_loss

    def patience_s(self):
        return self._rng.choice(GIVES_UP_AFTER_S)


class Connection:
    """A process's connection; what `services.ledger.connection.LedgerConnection` is to the product."""

    def __init__(self, process, ledger, network, crash_point):
        self._process = process
        self.ledger = ledger
        self._network = network
        self.loses_requests = False
        self.loses_replies = False
        self._crash_point = crash_point
        """Told of each call that is under way, and of each that is done and not answered yet."""

    async def write(self, operation, rows):
        if not rows:
            return []
        sent_at_s = self._process.timeline.now_s
        return await self._call(operation.name, lambda: self.ledger.commit(operation, rows, sent_at_s))

    async def read(self, work):
        return await self._call("read", lambda: work(self.ledger.transaction()))

    async def _call(self, name, work):
        loop = self._process.loop
        answer = loop.create_future()
        timeline, network = self._process.timeline, self._network

        def fail(cause):
            if not answer.done():
                answer.set_exception(LedgerUnavailable(cause))

        def arrive():
            if self.loses_requests or self.ledger.is_out or not network.keeps(network.loses_request):
                timeline.after(network.latency_s, lambda: self._process.run(lambda: fail("lost")))
                return
            result = work()
            self._crash_point(f"{name} done", self._process)
            if not self.loses_replies and network.keeps(network.loses_reply):
                pause_s = network.one_way_s(f"{name} done")
                timeline.after(pause_s, lambda: self._process.run(lambda: reply(result)))

        def reply(result):
            if not answer.done():
                answer.set_result(result)

        deadline = loop.call_later(network.patience_s(), fail, "no answer in time")
        timeline.after(network.one_way_s(f"{name} sent"), arrive)
        self._crash_point(f"{name} sent", self._process)
        try:
            return await answer
        finally:
            deadline.cancel()
