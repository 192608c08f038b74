-- Read batches of usage records for the usage store.
-- Arguments: message.store, the name of the usage store; message.consumer, the coordinator; message.most, the most
-- batches; message.idle_ms, the time after which a batch that another coordinator read is read again;
-- message.owned_ms, the time for which the stream belongs to this usage store.
-- Result: the name of the store to which the stream belongs; its batches, each with entry, spool, number and records;
-- the number of all batches in the stream. There are no batches if the stream belongs to another store.
-- Each coordinator has another name after a restart. Names without batches are forgotten after that time, too.
-- Atomic: a stream belongs to one usage store, because another one would get only a part of its records.
local STREAM, OWNER, GROUP = prefix .. ':usage', prefix .. ':usage:owner', 'usage'
local owner = redis.call('GET', OWNER)
if owner and owner ~= message.store then return {owner, {}, redis.call('XLEN', STREAM)} end
redis.call('SET', OWNER, message.store, 'PX', message.owned_ms)
if redis.call('EXISTS', STREAM) == 0 then return {message.store, {}, 0} end
local batches = {}
local function take(entries)
  for _, entry in ipairs(entries or {}) do
    -- Some versions name entries that were removed meanwhile, without their fields.
    local id, named = unpack(entry or {})
    if named then
      local fields = {}
      for place = 1, #named, 2 do fields[named[place]] = named[place + 1] end
      batches[#batches + 1] = {id, fields.spool or '', tonumber(fields.number) or 0, fields.records or ''}
    end
  end
end
local function claim()
  return redis.pcall('XAUTOCLAIM', STREAM, GROUP, message.consumer, message.idle_ms, '0', 'COUNT', message.most)
end
local claimed = claim()
if claimed.err then -- there is no group yet
  redis.call('XGROUP', 'CREATE', STREAM, GROUP, '0')
  claimed = claim()
end
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', STREAM, GROUP)) do
  local consumer = {}
  for place = 1, #info, 2 do consumer[info[place]] = info[place + 1] end
  if consumer.pending == 0 and consumer.idle > message.idle_ms then
    redis.call('XGROUP', 'DELCONSUMER', STREAM, GROUP, consumer.name)
  end
end
local _, claimed_entries = unpack(claimed)
take(claimed_entries)
if #batches < message.most then
  local read = redis.call('XREADGROUP', 'GROUP', GROUP, message.consumer, 'COUNT', message.most - #batches,
    'STREAMS', STREAM, '>')
  local _, entries = unpack(read and unpack(read) or {})
  take(entries)
end
return {message.store, batches, redis.call('XLEN', STREAM)}
