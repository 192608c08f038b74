-- Take or keep the lead of the pool's coordinators. Answers the leader's epoch, or 0 where another one leads.
-- Epochs only rise, even after the lease store was lost: they start at Redis' own milliseconds.
local LEADER = prefix .. ':leader'
local leader = redis.call('GET', LEADER)
local owner, epoch
if leader then owner, epoch = unpack(cmsgpack.unpack(leader)) end
if message.resigns then
  if owner == message.candidate then redis.call('DEL', LEADER) end
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
redis.call('SET', LEADER, cmsgpack.pack({message.candidate, epoch}), 'PX', message.leadership_ms)
return exact(epoch)
