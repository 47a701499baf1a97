-- Scenarios of flows that do not apply here, and why.
return {
  ['FLOW-10'] = 'there is no base class of stages to derive from: a stage is made of a body',
}
