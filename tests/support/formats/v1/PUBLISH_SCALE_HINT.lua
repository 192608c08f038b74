-- Replace the scale hint of all coordinators, unless a later coordinator has written.
-- Arguments: message.epoch. ARGV[2]: the content.
-- Result: the time of storing, or '0' if a later coordinator has written.
-- Atomic: a coordinator that lost its leadership must not write after its successor.
if message.epoch < stored_epoch() then return '0' end
redis.call('HSET', META, 'epoch', exact(message.epoch))
redis.call('HSET', SCALE_HINT, 'content', ARGV[2], 'at', exact(now))
keep(META, SCALE_HINT)
return exact(now)
