-- Replace the pool file that all sidecars enforce, unless a later coordinator has written already.
if message.epoch < tonumber(redis.call('HGET', META, 'epoch') or 0) then return 0 end
redis.call('HSET', META, 'epoch', exact(message.epoch), 'file_version', message.version)
redis.call('HSET', prefix .. ':file', 'version', message.version, 'content', ARGV[2])
keep(META, prefix .. ':file')
return 1
