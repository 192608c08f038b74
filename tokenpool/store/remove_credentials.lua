-- Remove credentials that ended long ago.
-- Arguments: message.ids; message.versions, the version of each one. message.modulus, for the sum of versions.
-- Result: none. A credential of another version stays. The rules are in tokenpool/leases/credential_feed.py.
-- Atomic: the sums belong to the records.
local state = redis.call('HGET', META, 'credentials') or ''
local generation, sequence, count, check = string.match(state, '^(%d+) (%d+) (%d+) (%d+)$')
if not generation then return end
count, check = tonumber(count), tonumber(check)
local values = fields_of(CREDENTIALS, message.ids)
for i, id in ipairs(message.ids) do
  local version = message.versions[i]
  if values[i] and tonumber(string.match(values[i], '^(%d+) ')) == version then
    redis.call('HDEL', CREDENTIALS, id)
    redis.call('ZREM', CREDENTIAL_FEED, id)
    count, check = count - 1, (check - version) % message.modulus
  end
end
redis.call('HSET', META, 'credentials', generation .. ' ' .. sequence .. ' ' .. exact(count) .. ' ' .. exact(check))
