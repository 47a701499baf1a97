"""asyncio, or uvloop with --uvloop: coroutines that give way by sleep(0), futures for Deferreds.

    python3 bench/asyncio_.py [--uvloop] WORKLOAD [ARGUMENT...]
"""
import asyncio
import gc
import os
import sys
import time


def tell_each(start, n, unit):
    print("%.2f\t%s" % ((time.process_time() - start) * 1e9 / n, unit))


def numbers(total):
    for v in range(1, total + 1):
        yield v


async def steps(tasks, total):
    each = total // tasks

    async def body():
        for _ in range(each):
            await asyncio.sleep(0)

    start = time.process_time()
    await asyncio.gather(*(body() for _ in range(tasks)))
    tell_each(start, each * tasks, "ns/step")


async def accumulate(total, batch):
    values = []
    start = time.process_time()
    for v in numbers(total):
        values.append(v)
        if len(values) % batch == 0:
            await asyncio.sleep(0)
    tell_each(start, total, "ns/value")


async def deferred(total):
    loop = asyncio.get_running_loop()

    def called(future):
        future.result()

    start = time.process_time()
    for i in range(total):
        future = loop.create_future()
        future.add_done_callback(called)
        future.add_done_callback(called)
        future.add_done_callback(called)
        future.set_result(i)
        if i % 1000 == 999:
            await asyncio.sleep(0)
    tell_each(start, total, "ns/Deferred")


async def await_ready(total):
    loop = asyncio.get_running_loop()
    result = 0
    start = time.process_time()
    for i in range(total):
        future = loop.create_future()
        future.set_result(i)
        result += await future
    tell_each(start, total, "ns/await")
    assert result == total * (total - 1) // 2


async def await_fired(total, coroutines):
    loop = asyncio.get_running_loop()
    queued = []

    def fire():
        nonlocal queued
        mine, queued = queued, []
        for future, value in mine:
            future.set_result(value)
        loop.call_soon(fire)

    async def body():
        for i in range(total // coroutines):
            future = loop.create_future()
            queued.append((future, i))
            assert await future == i

    start = time.process_time()
    loop.call_soon(fire)
    await asyncio.gather(*(body() for _ in range(coroutines)))
    tell_each(start, total, "ns/await")


async def spawn(total):
    async def body(v):
        return v

    start = time.process_time()
    for i in range(0, total, 1000):
        await asyncio.gather(*(asyncio.create_task(body(i)) for _ in range(1000)))
    tell_each(start, total, "ns/coroutine")


async def timers(total):
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    left = total - total // 2
    random = 42

    def fired():
        nonlocal left
        left -= 1
        if left == 0:
            done.set_result(None)

    start = time.process_time()
    calls = []
    for _ in range(total):
        random = (random * 1103515245 + 12345) & 0x7FFFFFFF
        calls.append(loop.call_later((random >> 8) % 1000 / 1000, fired))
    for call in calls[1::2]:
        call.cancel()
    await done
    tell_each(start, total, "ns/timer")


async def latency(duration):
    late = []
    count = 0
    over = False

    async def compute(n):
        nonlocal count
        i = x = 0
        while not over:
            i += 1
            x = n * i / 3.0
            await asyncio.sleep(0)
        count += i
        return x

    start = time.perf_counter()

    async def ticks():
        nonlocal over
        while not over:
            due = time.perf_counter() + 0.005
            await asyncio.sleep(0.005)
            late.append(time.perf_counter() - due)
            over = time.perf_counter() - start >= duration

    await asyncio.gather(ticks(), *(compute(n) for n in range(1, 5)))
    took = time.perf_counter() - start
    late.sort()
    print("%.3f\tms p50" % (late[len(late) // 2] * 1e3))
    print("%.3f\tms p99" % (late[len(late) * 99 // 100] * 1e3))
    print("%.2f\tMsteps/s" % (count / took / 1e6))


def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096


async def memory_tasks(total):
    never = asyncio.get_running_loop().create_future()

    async def body():
        await asyncio.shield(never)

    kept = [None] * total
    gc.collect()
    before = resident()
    for i in range(total):
        kept[i] = body()
        kept[i].send(None)
    gc.collect()
    print("%.1f\tbytes" % ((resident() - before) / total))


async def memory_deferreds(total):
    loop = asyncio.get_running_loop()
    kept = [None] * total

    def called(future):
        future.result()

    gc.collect()
    before = resident()
    for i in range(total):
        kept[i] = loop.create_future()
        kept[i].add_done_callback(called)
    gc.collect()
    print("%.1f\tbytes" % ((resident() - before) / total))


told = sys.argv[1:]
if told[0] == "--uvloop":
    import uvloop

    uvloop.install()
    told.pop(0)


async def main():
    await globals()[told[0].replace("-", "_")](*map(int, told[1:]))
    sys.stdout.flush()
    os._exit(0)


asyncio.run(main())
