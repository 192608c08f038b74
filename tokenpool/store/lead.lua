-- Take or keep the lease of the one coordinator that leads; answers its epoch, 0 where another leads.
-- Epochs only rise, even where the books were lost: they begin at Redis' own milliseconds.
local LEASE = prefix .. ':lease'
local lease = redis.call('GET', LEASE)
local owner, epoch
if lease then owner, epoch = unpack(cmsgpack.unpack(lease)) end
if message.resigns then
  if owner == message.candidate then redis.call('DEL', LEASE) end
  return '0'
end
if owner and owner ~= message.candidate then
  -- Written so that a replica or a full server refuses here too: a coordinator that looks on writes nothing else.
  redis.call('SET', prefix .. ':asked', 1, 'PX', KEEP_MS)
  return '0'
end
local known = tonumber(redis.call('HGET', META, 'epoch') or 0)
if not owner or epoch < known then
  epoch = math.max(known + 1, math.floor(now * 1000))
  opening()
  redis.call('HSET', META, 'epoch', exact(epoch))
end
redis.call('SET', LEASE, cmsgpack.pack({message.candidate, epoch}), 'PX', message.lease_ms)
return exact(epoch)
