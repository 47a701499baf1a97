-- Scenarios of inline functions and coroutines that have no spec, and why.
return {
  ['INL-13'] = 'any function can be a body: none is of the wrong kind',
  ['INL-42'] = 'optional: coop has no task-local variables; a body has its upvalues',
  ['INL-43'] = 'optional: coop has no task-local variables; a body has its upvalues',
  ['INL-44'] = 'not ported: an older notation of the original for what `coop.await` does',
}
