-- Replace all limits, unless a later coordinator has written already; answers whether they stand now.
if message.epoch < tonumber(redis.call('HGET', META, 'epoch') or 0) then return 0 end
redis.call('HSET', META, 'epoch', message.epoch)

local named = {}
for _, row in ipairs(message.limits) do
  local name, tps, kv, conc, depth = unpack(row)
  named[name] = true
  local page = load_page(name)
  refill(page)
  local is_new = page.depth == 0
  page.tps, page.kv, page.conc, page.depth = tps, kv, conc, depth
  page.level = is_new and depth or math.min(page.level, depth)
  save_page(page)
end

for _, name in ipairs(redis.call('SMEMBERS', PAGES)) do
  if not named[name] then
    local page = load_page(name)
    expire(page)
    page.tps, page.kv, page.conc, page.depth = 0, 0, 0, 0
    page.level = math.min(page.level, 0)
    if page.sum_kv == 0 and page.sum_conc == 0 and page.sum_tokens == 0 then
      redis.call('DEL', page.key, page.ends)
      redis.call('SREM', PAGES, name)
    else
      save_page(page)
    end
  end
end
return 1
