-- Replace the pool file of all sidecars, unless a later coordinator has written.
-- Arguments: message.epoch, message.version. ARGV[2]: the content.
-- Result: 1, or 0 if a later coordinator has written.
-- Atomic: a coordinator that lost its leadership must not write after its successor.
if message.epoch < stored_epoch() then return 0 end
redis.call('HSET', META, 'epoch', exact(message.epoch), 'file_version', message.version)
redis.call('HSET', FILE, 'version', message.version, 'content', ARGV[2])
keep(META, FILE)
return 1
