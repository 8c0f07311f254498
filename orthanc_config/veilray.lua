-- Sends every new CR, DX and SC image to VeilRay by C-STORE (PS3.4 Annex B) once its study has been quiet for StableAge.
--
-- An image is sent until VeilRay has acknowledged it, and then never again: each one carries the metadata VeilRayRouted
-- from that moment. So neither VeilRay's own report, which makes the study stable a second time, nor a resent image
-- starts a loop. Sending runs as an Orthanc job: this script never waits for the network, and storing goes on.
--
-- Orthanc does not repeat a failed job. What failed is sent again when its study is next stable, or as soon as any
-- other study has reached VeilRay. The list of failures is lost when Orthanc stops; where that is too little, let
-- VeilRay read the change feed instead (orthanc.change_feed in site.toml), which needs no script and forgets nothing.
--
-- orthanc.json must name the modality VEILRAY and the metadata VeilRayRouted, and leave DicomModalitiesInDatabase
-- false: otherwise Orthanc ignores the modalities of the file.

local MODALITY = 'VEILRAY'
local METADATA = 'VeilRayRouted'
local SOP_CLASSES = {
  ['1.2.840.10008.5.1.4.1.1.1'] = true,      -- Computed Radiography Image Storage
  ['1.2.840.10008.5.1.4.1.1.1.1'] = true,    -- Digital X-Ray Image Storage, for presentation
  ['1.2.840.10008.5.1.4.1.1.1.1.1'] = true,  -- Digital X-Ray Image Storage, for processing
  ['1.2.840.10008.5.1.4.1.1.7'] = true,      -- Secondary Capture Image Storage
}

local sending = {}   -- job -> { study = ..., instances = { ... } }
local busy = {}      -- instance -> true while a job carries it
local failed = {}    -- study -> true since a job of it failed
local routed = {}    -- instance -> true, only where Orthanc would not keep the metadata

local function metadata(instance)
  return ParseJson(RestApiGet('/instances/' .. instance .. '/metadata?expand', false) or '{}') or {}
end

local function wanted(instance)
  if busy[instance] or routed[instance] then return false end
  local known = metadata(instance)
  return SOP_CLASSES[known['SopClassUid']] and not known[METADATA] and known['RemoteAET'] ~= MODALITY
end

local function route(study)
  local found = RestApiGet('/studies/' .. study .. '/instances', false)
  if not found then  -- deleted meanwhile
    failed[study] = nil
    return
  end
  local instances = {}
  for _, instance in ipairs(ParseJson(found)) do
    if wanted(instance['ID']) then table.insert(instances, instance['ID']) end
  end
  if #instances == 0 then
    failed[study] = nil
    return
  end
  local request = { Resources = instances, Asynchronous = true }
  local answer = RestApiPost('/modalities/' .. MODALITY .. '/store', DumpJson(request, true), false)
  if not answer then
    failed[study] = true
    print('VeilRay: Orthanc knows no modality ' .. MODALITY .. ': put it into DicomModalities')
    return
  end
  for _, instance in ipairs(instances) do busy[instance] = true end
  sending[ParseJson(answer)['ID']] = { study = study, instances = instances }
end

function OnStableStudy(study, tags, known)
  route(study)
end

function OnJobSuccess(job)
  local done = sending[job]
  if not done then return end
  sending[job] = nil
  failed[done.study] = nil
  for _, instance in ipairs(done.instances) do
    busy[instance] = nil
    RestApiPut('/instances/' .. instance .. '/metadata/' .. METADATA, '1', false)
    if not metadata(instance)[METADATA] then
      routed[instance] = true  -- better forgotten at the next start than sent for ever
      print('VeilRay: Orthanc does not keep the metadata ' .. METADATA .. ': put it into UserMetadata')
    end
  end
  local again = failed  -- VeilRay is reachable: whatever failed before has its next chance now
  failed = {}
  for study in pairs(again) do route(study) end
end

function OnJobFailure(job)
  local lost = sending[job]
  if not lost then return end
  sending[job] = nil
  failed[lost.study] = true
  for _, instance in ipairs(lost.instances) do busy[instance] = nil end
  print('VeilRay: ' .. #lost.instances .. ' image(s) could not be sent and wait for the next occasion')
end
