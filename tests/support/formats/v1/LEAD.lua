-- Take or keep the leadership of the pool's coordinators, or resign it.
-- Arguments: message.candidate; message.leadership_ms, or message.resigns.
-- Result: the leader's epoch, or '0' if another candidate leads or this one resigned. Epochs only rise. They start at
-- the milliseconds of Redis' clock, so they rise after a lost store too.
-- Atomic: two candidates that find no leader would both lead.
local leader = redis.call('GET', LEADER)
local owner, epoch
if leader then owner, epoch = unpack(cmsgpack.unpack(leader)) end
if message.resigns then
  if owner == message.candidate then redis.call('DEL', LEADER) end
  return '0'
end
if owner and owner ~= message.candidate then
  -- A coordinator that does not lead writes nothing else. With this write, a replica or a full server refuses its call.
  redis.call('SET', prefix .. ':asked', 1, 'PX', KEEP_MS)
  return '0'
end
local known = stored_epoch()
if not owner or epoch < known then
  epoch = math.max(known + 1, math.floor(now * 1000))
  check_open()
  redis.call('HSET', META, 'epoch', exact(epoch))
end
redis.call('SET', LEADER, cmsgpack.pack({message.candidate, epoch}), 'PX', message.leadership_ms)
return exact(epoch)
