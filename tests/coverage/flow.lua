-- Scenarios of flows that do not apply here, and why.
local connections = 'belongs to flow.make_protocol, over coop.net'
local threads = 'belongs to flow.Threaded, over coop.threads'

return {
  ['FLOW-10'] = 'there is no base class of stages to derive from: a stage is made of a body',
  ['FLOW-58'] = connections,
  ['FLOW-59'] = connections,
  ['FLOW-60'] = connections,
  ['FLOW-63'] = threads,
  ['FLOW-65'] = threads,
  ['FLOW-66'] = threads,
  ['FLOW-67'] = threads,
  ['FLOW-70'] = 'belongs to flow.QueryIterator, over coop.db',
  ['FLOW-71'] = 'belongs to flow.Resource, over coop.http',
}
