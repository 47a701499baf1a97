// Node: promises and async functions; generators that are stepped from setImmediate in slices of
// 10 ms, with a look at the clock every 16 steps, which is as one would write it.
//     node --expose-gc bench/node.js WORKLOAD [ARGUMENT...]

'use strict';
const fs = require('fs');

const now = () => performance.now() / 1e3;

// What passes on the clock, or the processor's time when that is less: V8 has other threads.
const cpu = () => { const u = process.cpuUsage(); return (u.user + u.system) / 1e6; };
const begin = () => ({ wall: now(), cpu: cpu() });
const since = (t) => Math.min(now() - t.wall, cpu() - t.cpu);
const tell = (figure, unit) => console.log(`${figure.toFixed(3)}\t${unit}`);
const tellEach = (start, n, unit) => tell((since(start) * 1e9) / n, unit);

const turn = () => new Promise((resolve) => setImmediate(resolve));

class Cooperator {
  constructor() {
    this.tasks = [];
    this.tick = this.tick.bind(this);
  }

  cooperate(iterator) {
    return new Promise((done, failed) => {
      if (this.tasks.push({ iterator, done, failed }) === 1) setImmediate(this.tick);
    });
  }

  tick() {
    const { tasks } = this;
    const over = now() + 0.01;
    let i = 0;
    for (let n = 1; tasks.length > 0; n++) {
      if (i >= tasks.length) i = 0;
      const task = tasks[i];
      try {
        if (task.iterator.next().done) {
          task.done();
          tasks.splice(i, 1);
        } else i++;
      } catch (error) {
        task.failed(error);
        tasks.splice(i, 1);
      }
      if (n % 16 === 0 && now() >= over) break;
    }
    if (tasks.length > 0) setImmediate(this.tick);
  }
}

function memory(total, make) {
  const resident = () => Number(fs.readFileSync('/proc/self/statm', 'utf8').split(' ')[1]) * 4096;
  const collect = () => { gc(); gc(); };
  const kept = new Array(total).fill(null);
  collect();
  const before = resident();
  for (let i = 0; i < total; i++) kept[i] = make(i);
  collect();
  tell((resident() - before) / total, 'bytes');
  return kept;
}

const workloads = {
  async steps(tasks, total) {
    const each = Math.floor(total / tasks);
    const cooperator = new Cooperator();
    function* nothing() { for (let i = 0; i < each; i++) yield; }
    const start = begin();
    await Promise.all(Array.from({ length: tasks }, () => cooperator.cooperate(nothing())));
    tellEach(start, each * tasks, 'ns/step');
  },

  async accumulate(total, batch) {
    function* count() { for (let i = 1; i <= total; i++) yield i; }
    const values = [];
    const start = begin();
    for (const v of count()) {
      values.push(v);
      if (values.length % batch === 0) await turn();
    }
    tellEach(start, total, 'ns/value');
  },

  async deferred(total) {
    const increment = (v) => v + 1;
    const start = begin();
    for (let i = 0; i < total; i++) {
      let fire;
      const promise = new Promise((resolve) => { fire = resolve; });
      const last = promise.then(increment).then(increment).then(increment);
      fire(i);
      if (i % 1000 === 999) await last;
    }
    tellEach(start, total, 'ns/Deferred');
  },

  async 'await-ready'(total) {
    let sum = 0;
    const start = begin();
    for (let i = 0; i < total; i++) sum += await Promise.resolve(i);
    tellEach(start, total, 'ns/await');
    if (sum !== (total * (total - 1)) / 2) throw new Error('wrong sum');
  },

  async 'await-fired'(total, coroutines) {
    let queued = [];
    const fire = () => {
      const mine = queued;
      queued = [];
      for (const [resolve, value] of mine) resolve(value);
      setImmediate(() => { if (queued.length > 0) fire(); });
    };
    async function body() {
      for (let i = 0; i < total / coroutines; i++) {
        const value = await new Promise((resolve) => queued.push([resolve, i]));
        if (value !== i) throw new Error('wrong value');
      }
    }
    const start = begin();
    const all = Array.from({ length: coroutines }, body);
    fire();
    await Promise.all(all);
    tellEach(start, total, 'ns/await');
  },

  async spawn(total) {
    async function body(v) { return v; }
    const start = begin();
    for (let i = 0; i < total; i += 1000) await Promise.all(Array.from({ length: 1000 }, body));
    tellEach(start, total, 'ns/coroutine');
  },

  async timers(total) {
    const delays = [];
    let random = 42n;
    for (let i = 0; i < total; i++) {
      random = (random * 1103515245n + 12345n) & 0x7fffffffn;
      delays.push(Number(random >> 8n) % 1000);
    }
    const start = cpu();
    await new Promise((done) => {
      let left = total - Math.floor(total / 2);
      const timers = delays.map((ms) => setTimeout(() => { if (--left === 0) done(); }, ms));
      for (let i = 1; i < total; i += 2) clearTimeout(timers[i]);
    });
    tell(((cpu() - start) * 1e9) / total, 'ns/timer');
  },

  async latency(duration) {
    const cooperator = new Cooperator();
    const late = [];
    let steps = 0;
    let over = false;
    function* compute(n) {
      for (let i = 1; !over; i++, steps++) yield (n * i) / 3;
    }
    const tasks = [1, 2, 3, 4].map((n) => cooperator.cooperate(compute(n)));
    const start = now();
    const arm = () => {
      const due = now() + 0.005;
      setTimeout(() => {
        late.push(now() - due);
        over = now() - start >= duration;
        if (!over) arm();
      }, 5);
    };
    arm();
    await Promise.all(tasks);
    const took = now() - start;
    late.sort((a, b) => a - b);
    tell(late[late.length >> 1] * 1e3, 'ms p50');
    tell(late[Math.floor(late.length * 0.99)] * 1e3, 'ms p99');
    tell(steps / took / 1e6, 'Msteps/s');
  },

  async 'memory-tasks'(total) {
    const resolves = new Array(total).fill(null);
    async function body(i) {
      await new Promise((resolve) => { resolves[i] = resolve; });
      return i;
    }
    return [memory(total, body), resolves];
  },

  async 'memory-deferreds'(total) {
    const same = (v) => v;
    return memory(total, () => {
      const promise = new Promise(() => {});
      promise.then(same);
      return promise;
    });
  },
};

const [name, ...told] = process.argv.slice(2);
workloads[name](...told.map(Number)).then(() => process.exit(0), (error) => {
  console.error(error);
  process.exit(1);
});
