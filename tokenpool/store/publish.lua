-- Replace limits, unless a later coordinator has written already; answers whether they stand now. A long
-- list comes in parts and in any order, so that no call holds Redis up; one (message.all) says who is left.
-- Names and limits, packed as they are kept, are the arguments after the second: no page is unpacked for
-- them, which was two thirds of the time.
if message.epoch < tonumber(redis.call('HGET', META, 'epoch') or 0) then return 0 end
opening()
redis.call('HSET', META, 'epoch', exact(message.epoch), 'led_at', exact(now))

for i = 3, #ARGV, 2 do
  local name = ARGV[i]
  local key = page_key(name)
  if redis.call('HSET', key, 'l', ARGV[i + 1]) == 1 then
    redis.call('SADD', PAGES, name)
    keep(key, PAGES)
  end
end

if message.all then
  redis.call('SET', prefix .. ':limits', ARGV[2], 'PX', KEEP_MS)
  local named = {}
  for _, name in ipairs(message.all) do named[name] = true end
  for _, name in ipairs(redis.call('SMEMBERS', PAGES)) do
    if not named[name] then
      local page = load_page(name)
      if page.rows == 0 then
        redis.call('DEL', page_key(name))
        redis.call('SREM', PAGES, name)
      else
        redis.call('HDEL', page_key(name), 'l')
      end
    end
  end
end
renew()
return 1
