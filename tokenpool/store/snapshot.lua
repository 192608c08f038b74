-- Read the names of all records and limits, and the state of the lease store. Expired leases are taken back first.
-- Arguments: message.since, or none. With it, the names are only those of records written at this time or later.
-- Result: packed (SNAPSHOT_...).
-- Atomic: it changes the sums, as an exchange does.
expire()
check_open()
local names, seen
if message.since then
  names = redis.call('ZRANGEBYSCORE', CHANGED, exact(message.since), '+inf')
else
  names, seen = redis.call('HKEYS', LIMITS), {}
  for _, name in ipairs(names) do seen[name] = true end
  for _, name in ipairs(redis.call('HKEYS', RECORDS)) do
    if not seen[name] then names[#names + 1] = name end
  end
end
local snapshot = new_snapshot()
snapshot[SNAPSHOT_NAMES] = names
snapshot[SNAPSHOT_EPOCH] = stored_epoch()
snapshot[SNAPSHOT_IS_OPEN] = is_open and now - tonumber(redis.call('HGET', META, 'heard_at')) <= LIFETIME
snapshot[SNAPSHOT_AT] = now
snapshot[SNAPSHOT_FILE_VERSION] = redis.call('HGET', META, 'file_version') or ''
snapshot[SNAPSHOT_LIMITS] = redis.call('HGET', META, 'limits') or ''
return cmsgpack.pack(snapshot)
