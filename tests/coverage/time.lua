-- Scenarios of time, the reactor and the Cooperator that do not apply, and why.
local elsewhere = 'belongs to coop.threads / coop_post'

return {
  ['CLK-32'] = 'there is no debug mode to switch; a delayed call keeps no stack of its creation',
  ['EVT-20'] = 'the reactor has no iterate; a loop turns by itself',
  ['EVT-22'] = 'belongs to coop.net, which closes what it opened',
  ['EVT-25'] = elsewhere,
  ['EVT-26'] = elsewhere,
  ['EVT-27'] = elsewhere,
  ['EVT-28'] = elsewhere,
  ['EVT-29'] = elsewhere,
  ['EVT-30'] = elsewhere,
  ['EVT-31'] = elsewhere,
  ['EVT-32'] = elsewhere,
  ['EVT-33'] = elsewhere,
}
