-- Replace the scale hint that all coordinators serve, unless a later coordinator has written already; answers the
-- time, or 0. Check and write are one call, so that a coordinator that lost its lease cannot write after its successor.
if message.epoch < tonumber(redis.call('HGET', META, 'epoch') or 0) then return '0' end
redis.call('HSET', META, 'epoch', exact(message.epoch))
redis.call('HSET', prefix .. ':scale', 'content', ARGV[2], 'at', exact(now))
keep(META, prefix .. ':scale')
return exact(now)
