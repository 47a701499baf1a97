"""Twisted: what coop's programs do, by the functions of the same names.

    python3 bench/twisted_.py WORKLOAD [ARGUMENT...]
"""
import gc
import os
import sys
import time

from twisted.internet import defer, reactor, task


def tell_each(start, n, unit):
    print("%.2f\t%s" % ((time.process_time() - start) * 1e9 / n, unit))


def numbers(total):
    for v in range(1, total + 1):
        yield v


def steps(tasks, total):
    each = total // tasks

    def nothing():
        for _ in range(each):
            yield

    start = time.process_time()
    done = defer.gatherResults([task.coiterate(nothing()) for _ in range(tasks)])
    return done.addCallback(lambda _: tell_each(start, each * tasks, "ns/step"))


def accumulate(total, batch):
    values = []

    def collect():
        for v in numbers(total):
            values.append(v)
            if len(values) % batch == 0:
                yield

    start = time.process_time()
    return task.coiterate(collect()).addCallback(lambda _: tell_each(start, total, "ns/value"))


def deferred(total):
    def increment(v):
        return v + 1

    start = time.process_time()
    for i in range(total):
        d = defer.Deferred()
        d.addCallback(increment)
        d.addCallback(increment)
        d.addCallback(increment)
        d.callback(i)
    tell_each(start, total, "ns/Deferred")


@defer.inlineCallbacks
def await_ready(total):
    result = 0
    start = time.process_time()
    for i in range(total):
        result += yield defer.succeed(i)
    tell_each(start, total, "ns/await")
    assert result == total * (total - 1) // 2


def await_fired(total, coroutines):
    queued = []

    @defer.inlineCallbacks
    def body():
        for i in range(total // coroutines):
            d = defer.Deferred()
            queued.append((d, i))
            assert (yield d) == i

    def fire():
        mine = queued[:]
        queued.clear()
        for d, value in mine:
            d.callback(value)
        if queued:
            reactor.callLater(0, fire)

    start = time.process_time()
    done = defer.gatherResults([body() for _ in range(coroutines)])
    reactor.callLater(0, fire)
    return done.addCallback(lambda _: tell_each(start, total, "ns/await"))


def spawn(total):
    @defer.inlineCallbacks
    def body(v):
        return v
        yield

    start = time.process_time()
    for i in range(total):
        body(i)
    tell_each(start, total, "ns/coroutine")


def timers(total):
    done = defer.Deferred()
    left = total - total // 2
    random = 42

    def fired():
        nonlocal left
        left -= 1
        if left == 0:
            done.callback(None)

    start = time.process_time()
    calls = []
    for _ in range(total):
        random = (random * 1103515245 + 12345) & 0x7FFFFFFF
        calls.append(reactor.callLater((random >> 8) % 1000 / 1000, fired))
    for call in calls[1::2]:
        call.cancel()
    return done.addCallback(lambda _: tell_each(start, total, "ns/timer"))


def latency(duration):
    late = []
    count = 0
    over = False

    def compute(n):
        nonlocal count
        i = 0
        while not over:
            i += 1
            yield n * i / 3.0
        count += i

    start = time.perf_counter()
    done = defer.gatherResults([task.coiterate(compute(n)) for n in range(1, 5)])

    def arm():
        due = time.perf_counter() + 0.005

        def called():
            nonlocal over
            late.append(time.perf_counter() - due)
            over = time.perf_counter() - start >= duration
            if not over:
                arm()

        reactor.callLater(0.005, called)

    def report(_):
        took = time.perf_counter() - start
        late.sort()
        print("%.3f\tms p50" % (late[len(late) // 2] * 1e3))
        print("%.3f\tms p99" % (late[len(late) * 99 // 100] * 1e3))
        print("%.2f\tMsteps/s" % (count / took / 1e6))

    arm()
    return done.addCallback(report)


def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096


def memory(total, make):
    kept = [None] * total
    gc.collect()
    before = resident()
    for i in range(total):
        kept[i] = make(i)
    gc.collect()
    print("%.1f\tbytes" % ((resident() - before) / total))
    sys.stdout.flush()
    os._exit(0)


def memory_tasks(total):
    def forever(v):
        yield v
        yield v

    cooperator = task.Cooperator(started=False)

    def make(i):
        iterator = forever(i)
        next(iterator)
        return cooperator.cooperate(iterator)

    memory(total, make)


def memory_deferreds(total):
    memory(total, lambda _: defer.Deferred().addCallback(lambda v: v))


def main():
    done = defer.maybeDeferred(globals()[sys.argv[1].replace("-", "_")], *map(int, sys.argv[2:]))
    done.addErrback(lambda failure: failure.printTraceback())
    done.addBoth(lambda _: reactor.stop())


reactor.callWhenRunning(main)
reactor.run()
