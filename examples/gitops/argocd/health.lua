-- The health of a HealthScope in the words of Argo CD; for argocd-cm, key
-- resource.customizations.health.core.oam.dev_HealthScope.
local hs = {}
local status = obj.status

if status == nil or status.health == nil or status.observedGeneration == nil then
  hs.status = "Progressing"
  hs.message = "no aggregator has reported on it yet"
  return hs
end
if obj.metadata.generation ~= nil and status.observedGeneration < obj.metadata.generation then
  hs.status = "Progressing"
  hs.message = "the aggregator has not looked at the present spec yet"
  return hs
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

-- A spec that cannot be used: somebody has to change it.
local stalled = conditions["Stalled"]
if stalled ~= nil and stalled.status == "True" then
  hs.status = "Degraded"
  hs.message = (stalled.reason or "Stalled") .. ": " .. (stalled.message or "")
  return hs
end

local maintenance = status.maintenance
if maintenance ~= nil and maintenance.active then
  hs.status = "Suspended"
  hs.message = "in maintenance"
  if maintenance["until"] ~= nil then
    hs.message = hs.message .. " until " .. maintenance["until"]
  end
  if maintenance.reason ~= nil and maintenance.reason ~= "" then
    hs.message = hs.message .. ": " .. maintenance.reason
  end
  return hs
end

-- Argo CD calls broken what HealthScope calls Unhealthy. What HealthScope calls Degraded does its work.
local words = { Healthy = "Healthy", Degraded = "Healthy", Unhealthy = "Degraded" }
hs.status = words[status.health] or "Progressing"
hs.message = status.health
if status.available ~= nil then
  hs.message = hs.message .. ", " .. status.available .. " available"
end
local why = status.rootCause
if why == nil and status.health ~= "Healthy" and conditions["Healthy"] ~= nil then
  why = conditions["Healthy"].message
end
if why ~= nil and why ~= "" then
  hs.message = hs.message .. ": " .. why
end
return hs
