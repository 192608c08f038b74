-- Replace limits, unless a later coordinator has written. A long list is sent in parts, so that no call occupies Redis
-- for long.
-- Arguments: message.epoch; message.names and message.sizes, two lists of the same length: entitlements and the lengths
-- of their packed limits in bytes; in the last part message.all, all names. ARGV[2]: the packed limits one after the
-- other, stored without decoding. ARGV[3]: the packed terms.
-- Result: 1, or 0 if a later coordinator has written.
-- Atomic: a coordinator that lost its leadership must not write after its successor.
if message.epoch < stored_epoch() then return 0 end
check_open()
redis.call('HSET', META, 'epoch', exact(message.epoch), 'published_at', exact(now), 'terms', ARGV[3],
  'schema', message.v)

local fields, at = {}, 1
for i, name in ipairs(message.names) do
  fields[#fields + 1], fields[#fields + 2] = name, string.sub(ARGV[2], at, at + message.sizes[i] - 1)
  at = at + message.sizes[i]
end
if #fields > 0 and redis.call('HSET', LIMITS, unpack(fields)) > 0 then keep(LIMITS) end

if message.all then
  redis.call('HSET', META, 'complete', 1)
  local named = {}
  for _, name in ipairs(message.all) do named[name] = true end
  for _, name in ipairs(redis.call('HKEYS', LIMITS)) do
    if not named[name] then redis.call('HDEL', LIMITS, name) end
  end
  for _, name in ipairs(redis.call('HKEYS', RECORDS)) do
    -- A record with rows stays until its last lease is returned.
    if not named[name] and redis.call('HLEN', rows_key(name)) == 0 then redis.call('HDEL', RECORDS, name) end
  end
end
renew_keys()
return 1
