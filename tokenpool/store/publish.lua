-- Replace limits, unless a later coordinator has written. A long list is sent in parts, so that no call occupies Redis
-- for long.
-- Arguments: message.epoch; message.names and message.sizes, two lists of the same length: entitlements and the lengths
-- of their packed limits in bytes; in the last part message.all, all names. ARGV[2]: the packed limits one after the
-- other, stored without decoding. ARGV[3]: the packed terms. message.mark: in the last part, the mark of this
-- publication. message.base: if only changed limits are sent, the mark of the publication that they change,
-- with message.before, the number of its limits. message.removed: in the last part, the names of removed limits.
-- Result: 1, or 0 if a later coordinator has written, or 2 if the stored limits are not those of that publication.
-- Atomic: a coordinator that lost its leadership must not write after its successor.
if message.epoch < stored_epoch() then return 0 end
if message.base and (redis.call('HGET', META, 'limits') ~= message.base
  or redis.call('HLEN', LIMITS) < message.before) then return 2 end
check_open()
redis.call('HSET', META, 'epoch', exact(message.epoch), 'published_at', exact(now), 'terms', ARGV[3],
  'schema', message.v)

local fields, at = {}, 1
for i, name in ipairs(message.names) do
  fields[#fields + 1], fields[#fields + 2] = name, string.sub(ARGV[2], at, at + message.sizes[i] - 1)
  at = at + message.sizes[i]
end
if #fields > 0 and redis.call('HSET', LIMITS, unpack(fields)) > 0 then keep(LIMITS) end

-- A record with rows stays until its last lease is returned.
local function remove_idle_record(name)
  if redis.call('HLEN', rows_key(name)) == 0 then redis.call('HDEL', RECORDS, name) end
end
for _, name in ipairs(message.removed or {}) do
  redis.call('HDEL', LIMITS, name)
  remove_idle_record(name)
end
if message.all then
  redis.call('HSET', META, 'complete', 1)
  local named = {}
  for _, name in ipairs(message.all) do named[name] = true end
  for _, name in ipairs(redis.call('HKEYS', LIMITS)) do
    if not named[name] then redis.call('HDEL', LIMITS, name) end
  end
  for _, name in ipairs(redis.call('HKEYS', RECORDS)) do
    if not named[name] then remove_idle_record(name) end
  end
end
if message.mark then
  redis.call('HSET', META, 'limits', message.mark)
  redis.call('ZREMRANGEBYSCORE', CHANGED, '-inf', exact(now - message.keep))
end
renew_keys()
return 1
