-- Replace limits, unless a later coordinator has written already; answers whether they stand now. A long
-- list comes in parts, so that no call holds Redis up; the last one (message.all) says who is left.
-- The limits follow each other in the second argument, packed as they are kept: each is cut out unread.
if message.epoch < tonumber(redis.call('HGET', META, 'epoch') or 0) then return 0 end
opening()
redis.call('HSET', META, 'epoch', exact(message.epoch), 'led_at', exact(now), 'terms', ARGV[3])

local fields, at = {}, 1
for i, name in ipairs(message.names) do
  fields[2 * i - 1], fields[2 * i] = name, string.sub(ARGV[2], at, at + message.sizes[i] - 1)
  at = at + message.sizes[i]
end
if #fields > 0 and redis.call('HSET', LIMITS, unpack(fields)) > 0 then keep(LIMITS) end

if message.all then
  redis.call('HSET', META, 'limited', 1)
  local named = {}
  for _, name in ipairs(message.all) do named[name] = true end
  for _, name in ipairs(redis.call('HKEYS', LIMITS)) do
    if not named[name] then redis.call('HDEL', LIMITS, name) end
  end
  for _, name in ipairs(redis.call('HKEYS', PAGES)) do
    -- Who still holds something keeps its page until the last of it is returned.
    if not named[name] and redis.call('HLEN', rows_key(name)) == 0 then redis.call('HDEL', PAGES, name) end
  end
end
renew()
return 1
