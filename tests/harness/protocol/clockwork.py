"""A world on virtual time: true time moves from event to event; each process has a clock and an event loop of its own.

The product's coroutines run on these loops unchanged. Nothing sleeps, nothing is parallel, and the same seed gives the
same run.
"""

import asyncio
import heapq
import itertools
from collections import deque


class Timeline:
    """True time [s], and what is to happen when."""

    def __init__(self):
        self.now_s = 0.0
        self._coming = []
        self._numbers = itertools.count()

    def at(self, when_s, act):
        heapq.heappush(self._coming, (max(when_s, self.now_s), next(self._numbers), act))

    def after(self, pause_s, act):
        self.at(self.now_s + pause_s, act)

    def run_until(self, is_over):
        """Go from event to event until `is_over` after one of them."""
        while self._coming and not is_over():
            self.now_s, _, act = heapq.heappop(self._coming)
            act()


class Clock:
    """A monotonic clock: its rate is not quite that of true time, and its zero is anywhere."""

    def __init__(self, timeline, rate, offset_s):
        self._timeline = timeline
        self._rate = rate
        self._offset_s = offset_s

    def reading_s(self):
        return self._offset_s + self._rate * self._timeline.now_s

    def wall_s(self):
        """What a wall clock of that machine would show: no two agree, and that is why nothing is built on them."""
        return self._timeline.now_s + self._offset_s % 7

    def true_s(self, reading_s):
        return (reading_s - self._offset_s) / self._rate


class Process:
    """Something that can be killed, frozen and continued; `serve` is its life."""

    def __init__(self, timeline, name, clock):
        self.timeline = timeline
        self.name = name
        self.clock = clock
        self.is_alive = True
        self.is_frozen = False
        self.loop = _Loop(self)
        self._missed = []
        self.when_over = []
        """What is to be done when it has ended, however it did."""

    def start(self, life):
        self.timeline.after(0, lambda: self.run(lambda: self._live(life)))

    def _live(self, life):
        task = self.loop.create_task(life)
        task.add_done_callback(self._over)

    def _over(self, task):
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()
        self.kill()

    def run(self, act):
        """Let something happen inside of the process, now, or once it goes on."""
        if not self.is_alive:
            return
        if self.is_frozen:
            self._missed.append(act)
            return
        self.loop.run(act)

    def kill(self):
        """End it at once: nothing that it had begun goes on."""
        if self.is_alive:
            self.is_alive = False
            self.loop.abandon()
            self._missed = []
            for act in self.when_over:
                act()

    def freeze(self):
        self.is_frozen = True

    def thaw(self):
        """Go on; what came meanwhile is all there at once."""
        self.is_frozen = False
        missed, self._missed = self._missed, []
        for act in missed:
            self.run(act)


class _Loop(asyncio.AbstractEventLoop):
    """As much of an event loop as the product's coroutines need, on its process's clock."""

    def __init__(self, process):
        self.process = process
        self._ready = deque()
        self._tasks = []
        self._is_running = False

    def run(self, act):
        if self._is_running:
            act()
            return
        # One process's end may wake another, inside of the one's own step.
        around = asyncio._get_running_loop()  # noqa: SLF001 (every event loop tells asyncio that it runs in this way)
        self._is_running = True
        asyncio._set_running_loop(self)  # noqa: SLF001 (as above)
        try:
            act()
            while self._ready:
                _fire(self._ready.popleft())
        finally:
            asyncio._set_running_loop(around)  # noqa: SLF001 (as above)
            self._is_running = False

    def abandon(self):
        self._ready.clear()
        for task in self._tasks:
            task._log_destroy_pending = False  # noqa: SLF001 (asyncio has no other way to drop a task in silence)

    def time(self):
        return self.process.clock.reading_s()

    def call_soon(self, callback, *args, context=None):
        handle = asyncio.Handle(callback, args, self, context)
        if self.process.is_alive:
            self._ready.append(handle)
        return handle

    def call_later(self, delay, callback, *args, context=None):
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(self, when, callback, *args, context=None):
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.process.timeline.at(self.process.clock.true_s(when), lambda: self.process.run(lambda: _fire(handle)))
        return handle

    def _timer_handle_cancelled(self, handle):
        pass

    def create_future(self):
        return asyncio.Future(loop=self)

    def create_task(self, coro, **_):
        task = asyncio.Task(coro, loop=self)
        self._tasks = [one for one in self._tasks if not one.done()]
        self._tasks.append(task)
        return task

    def get_debug(self):
        return False

    def is_closed(self):
        return False

    def call_exception_handler(self, context):
        raise context.get("exception") or AssertionError(context["message"])


def _fire(handle):
    if not handle.cancelled():
        handle._run()  # noqa: SLF001 (how an event loop runs what was scheduled)
