"""vmm.threads against a model, step by step; and against a count of what runs, under real concurrency."""

import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.vmm.threads_support import LONG, eventually, thread_ids
from vmm.threads import Counts, Job, Runtime, dedicate_os_thread, undedicate_os_thread


class Puppet:
    """A job that does what it is told: each call sent to it is answered with what the call raised."""

    job: Job[str]

    def __init__(self, number: int) -> None:
        self.number = number
        self.depth = 0  # the model's
        self.thread = 0
        self._started: SimpleQueue[int] = SimpleQueue()
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._answers: SimpleQueue[BaseException | None] = SimpleQueue()

    def __repr__(self) -> str:
        return f"puppet {self.number}"

    def body(self) -> str:
        self._started.put(threading.get_native_id())
        while (call := self._calls.get(timeout=2 * LONG)) is not None:
            try:
                call()
            except RuntimeError as error:
                self._answers.put(error)
            else:
                self._answers.put(None)
        return f"end of {self.number}"

    def await_start(self) -> int:
        self.thread = self._started.get(timeout=LONG)
        return self.thread

    def has_started(self) -> bool:
        return not self._started.empty()

    def tell(self, call: Callable[[], None]) -> BaseException | None:
        self._calls.put(call)
        return self._answers.get(timeout=LONG)

    def end(self) -> str:
        self._calls.put(None)
        return self.job.join(LONG)


class Machine(RuleBasedStateMachine):
    """The model: who runs, who waits, which thread is idle, and so which thread each job must get."""

    @initialize(limit=st.integers(1, 3))
    def start(self, limit: int) -> None:
        self.before = thread_ids()
        self.runtime = Runtime(limit, idle_seconds=10 * LONG)
        self.limit = limit
        self.number = 0
        self.running: list[Puppet] = []
        self.dedicated: list[Puppet] = []
        self.queue: deque[Puppet] = deque()
        self.idle: list[int] = []

    def _new(self, dedicated: bool) -> Puppet:
        puppet = Puppet(self.number)
        self.number += 1
        puppet.depth = int(dedicated)
        puppet.job = self.runtime.spawn(puppet.body, dedicated=dedicated)
        return puppet

    def _check_start(self, puppet: Puppet) -> None:
        thread = puppet.await_start()
        if self.idle:
            assert thread == self.idle.pop(), "the thread that became idle last"
        else:
            assert thread not in {other.thread for other in self.running + self.dedicated if other is not puppet}

    def _start_waiting(self) -> None:
        while self.queue and len(self.running) < self.limit:
            puppet = self.queue.popleft()
            self.running.append(puppet)
            self._check_start(puppet)

    @rule()
    def spawn(self) -> None:
        self.queue.append(self._new(dedicated=False))
        self._start_waiting()

    @rule()
    def spawn_dedicated(self) -> None:
        puppet = self._new(dedicated=True)
        self.dedicated.append(puppet)
        self._check_start(puppet)

    def _pick(self, data: st.DataObject) -> Puppet:
        return data.draw(st.sampled_from(self.running + self.dedicated))

    @precondition(lambda self: self.running or self.dedicated)
    @rule(data=st.data())
    def dedicate(self, data: st.DataObject) -> None:
        puppet = self._pick(data)
        assert puppet.tell(dedicate_os_thread) is None
        puppet.depth += 1
        if puppet.depth == 1:
            self.running.remove(puppet)
            self.dedicated.append(puppet)
            self._start_waiting()

    @precondition(lambda self: self.running or self.dedicated)
    @rule(data=st.data())
    def undedicate(self, data: st.DataObject) -> None:
        puppet = self._pick(data)
        error = puppet.tell(undedicate_os_thread)
        if not puppet.depth:
            assert "not dedicated" in str(error)
            return
        assert error is None
        puppet.depth -= 1
        if not puppet.depth:
            self.dedicated.remove(puppet)
            self.running.append(puppet)

    @precondition(lambda self: self.running or self.dedicated)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self._end(self._pick(data))

    def _end(self, puppet: Puppet) -> None:
        assert puppet.end() == f"end of {puppet.number}"
        if puppet.depth:
            self.dedicated.remove(puppet)
            eventually(lambda: puppet.thread not in thread_ids(), "the end of the dedicated thread")
        else:
            self.running.remove(puppet)
            self.idle.append(puppet.thread)
            self._start_waiting()

    @invariant()
    def counts_agree(self) -> None:
        counts = self.runtime.counts()
        threads = len(self.running) + len(self.dedicated) + len(self.idle)
        assert counts == Counts(
            self.limit, len(self.running), len(self.dedicated), len(self.queue), len(self.idle), threads
        )
        assert not any(puppet.has_started() for puppet in self.queue)

    def teardown(self) -> None:
        while self.running or self.dedicated:
            self._end((self.running or self.dedicated)[0])
        self.runtime.close(LONG)
        assert self.runtime.counts() == Counts(self.limit, 0, 0, 0, 0, 0)
        eventually(lambda: thread_ids() <= self.before, "the end of all threads")


TestModel = Machine.TestCase
TestModel.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@pytest.fixture
def many_switches() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class Census:
    """Counts the ordinary jobs that run, as the reference for the limit.

    A job enters after the runtime has begun to count it and leaves before that ends, so the census never shows more
    than the runtime has. Jobs that have given their threads back are not in it: they may exceed the limit.
    """

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._limit = limit
        self._now = 0
        self.most = 0
        self.violations = 0

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self.violations += self._now > self._limit

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("many_switches")
def test_never_more_than_the_limit_under_load(seed: int) -> None:
    chance = random.Random(seed)
    limit = chance.randint(1, 4)
    census = Census(limit)
    before = thread_ids()
    ended: list[int] = []
    full = threading.Barrier(limit)  # the first jobs meet there, so that the limit is reached for sure

    def body(number: int, plan: list[str], runtime: Runtime) -> int:
        with census:
            if 0 < number <= limit:
                full.wait(LONG)
            children = [
                runtime.spawn(body, -number, ["short"], runtime, observed=True) for step in plan if step == "spawn"
            ]
            time.sleep(0 if "short" in plan else 0.0005)
        depth = 0
        for step in plan:
            if step == "dedicate":
                dedicate_os_thread()
                depth += 1
            elif step == "undedicate" and depth:
                undedicate_os_thread()
                depth -= 1
        if depth:  # it holds no slot: it may wait
            for child in children:
                child.join(LONG)
        ended.append(number)
        return number

    with Runtime(limit, idle_seconds=chance.choice([0.0, 0.0005, LONG])) as runtime:
        jobs = []
        for number in range(1, 201):
            plan = chance.choices(["dedicate", "undedicate", "spawn", "short"], k=chance.randint(0, 6))
            jobs.append(runtime.spawn(body, number, plan, runtime, dedicated=False))
            if not number % 50:
                jobs[chance.randrange(number)].join(LONG)
        assert [job.join(LONG) for job in jobs] == list(range(1, 201))
        eventually(lambda: not runtime.counts().queued and not runtime.counts().running, "the end of the children")
    assert sorted(number for number in ended if number > 0) == list(range(1, 201))
    assert census.violations == 0
    assert census.most == limit
    eventually(lambda: thread_ids() <= before, "the end of all threads")
