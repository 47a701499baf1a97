--- Scenarios that have no test, and why.
return {
  ['DEF-30'] = 'there is no debug mode: AlreadyCalledError always names the function',
  ['DEF-32'] = 'there is no debug mode to be switched',
  ['DEF-85'] = 'there is no ensureDeferred: maybe_deferred and spawn take its place',
  ['DEF-87'] = 'there is no log of its own: failures go to the function of on_unhandled',
  ['ERR-05'] = 'there is no debug mode',
  ['SYNC-27'] = 'there is no lock in the file system',
  ['FAIL-10'] = 'a Failure has no traceback object and no clean-up: the traceback is text',
  ['FAIL-11'] = 'Lua values carry no traceback that could be picked up',
  ['FAIL-12'] = 'a Failure needs no clean-up: Lua values carry no traceback',
  ['FAIL-14'] = 'there is one form of traceback, no brief or verbose one',
  ['FAIL-15'] = 'a traceback has no levels of detail',
}
