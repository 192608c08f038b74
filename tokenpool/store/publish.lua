-- Replace limits, unless a later coordinator has written already; answers whether they stand now. A long
-- list comes in parts and in any order, so that no call holds Redis up; one (message.all) says who is left.
if message.epoch < tonumber(redis.call('HGET', META, 'epoch') or 0) then return 0 end
opening()
redis.call('HSET', META, 'epoch', exact(message.epoch), 'led_at', exact(now))

for _, row in ipairs(message.limits) do
  local name, limit = row[1], row[2]
  local page = load_page(name)
  local same = not page.is_new
  for i = 1, #limit do same = same and page.limit[i] == limit[i] end
  if not same then
    refill(page)
    local had_none = page.limit[4] == 0
    page.limit = limit
    page.level = had_none and limit[4] or math.min(page.level, limit[4])
    save_page(page)
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
        page.limit, page.level = {0, 0, 0, 0, 0, 0, 0}, math.min(page.level, 0)
        save_page(page)
      end
    end
  end
end
renew()
return 1
