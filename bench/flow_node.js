// What a value costs in each stage of a chain of five async generators, in nanoseconds: the best
// of three rounds, so that it has been compiled. See flow.lua.

const values = Number(process.argv[2] || 200000);
const STAGES = 5;

async function* count() {
  for (let i = 1; i <= values; i++) yield i;
}

async function* plusOne(source) {
  for await (const v of source) yield v + 1;
}

async function read() {
  let chain = count();
  for (let i = 2; i <= STAGES; i++) chain = plusOne(chain);
  const start = process.hrtime.bigint();
  let sum = 0;
  for await (const v of chain) sum += v;
  return Number(process.hrtime.bigint() - start) / values / STAGES;
}

(async () => {
  let best = Infinity;
  for (let round = 0; round < 3; round++) best = Math.min(best, await read());
  console.log(best);
})();
