-- Write credentials, and notify all sidecars.
-- Arguments: message.ids; message.expected, message.versions and message.sizes, lists of the same length: the version
-- that a change replaces (0: a new credential), the version of a record that is restored (0: a change), and the length
-- of the content in bytes. message.modulus, for the sum of versions. ARGV[2]: the contents one after the other.
-- Result: the version of each credential; '0' if it was not written. The rules are in
-- tokenpool/leases/credential_feed.py.
-- Atomic: two coordinators may change one credential, and the sums belong to the records.
local ms = math.floor(now * 1000)
local state = redis.call('HGET', META, 'credentials') or ''
local generation, sequence, count, check = string.match(state, '^(%d+) (%d+) (%d+) (%d+)$')
generation, sequence = tonumber(generation or ms), tonumber(sequence or 0)
count, check = tonumber(count or 0), tonumber(check or 0)

local fields, scores, results, at = {}, {}, {}, 1
local values = fields_of(CREDENTIALS, message.ids)
for i, id in ipairs(message.ids) do
  local content = string.sub(ARGV[2], at, at + message.sizes[i] - 1)
  at = at + message.sizes[i]
  local known = values[i] and tonumber(string.match(values[i], '^(%d+) ')) or 0
  local version = message.versions[i]
  local is_written = version > known
  if version == 0 then
    is_written = message.expected[i] == known
    version = math.max(known + 1, ms)
  end
  if is_written then
    sequence = math.max(sequence + 1, ms)
    if known == 0 then count = count + 1 end
    check = (check + version - known) % message.modulus
    fields[#fields + 1], fields[#fields + 2] = id, exact(version) .. ' ' .. content
    scores[#scores + 1], scores[#scores + 2] = exact(sequence), id
    results[i] = exact(version)
  else
    results[i] = '0'
  end
end
if #fields > 0 then
  redis.call('HSET', CREDENTIALS, unpack(fields))
  redis.call('ZADD', CREDENTIAL_FEED, unpack(scores))
  redis.call('HSET', META, 'credentials',
    exact(generation) .. ' ' .. exact(sequence) .. ' ' .. exact(count) .. ' ' .. exact(check))
  for _, holder in ipairs(redis.call('ZRANGE', ALIVE, 0, -1)) do
    redis.call('PUBLISH', prefix .. ':push:' .. holder, cmsgpack.pack({'credentials', ''}))
  end
end
keep(META, CREDENTIALS, CREDENTIAL_FEED)
return results
