-- Book what one sidecar says, and answer with what it holds.
expire()
opening()
if now - tonumber(redis.call('HGET', META, 'heard_at')) > LIFETIME then
  redis.call('HSET', META, 'opens_at', exact(now + LIFETIME))
  is_open = false
end
redis.call('HSET', META, 'heard_at', exact(now))
renew()

local me = message.holder
local HOLDER = holder_key(me)
local known = redis.call('HMGET', HOLDER, 'number', 'names')
local is_alive = redis.call('ZSCORE', ALIVE, me)
local grants, said_of = {}, {}
for i, said in ipairs(message.holdings) do said_of[i] = said[1] end
local pages = load(said_of, me)

local function grant(i, page, values, kv, conc, tokens)
  grants[i] = {
    kv, conc, tokens, page.limit, page.level - page.sums[TOKENS],
    page.sums[KV_USED] - values[KV_USED], page.sums[CONC_USED] - values[CONC_USED],
    now < page.contended_until,
  }
end

local function answer()
  local meta = redis.call('HMGET', META, 'file_version', 'led_at')
  local unled_s = meta[2] and now - tonumber(meta[2]) or math.huge
  return cmsgpack.pack({grants, is_open, redis.call('ZCARD', ALIVE), meta[1] or '', unled_s})
end

local function standing()
  for i, said in ipairs(message.holdings) do
    local page = pages[said[1]]
    refill(page)
    local values = page.row and page.row.values or nobody()
    grant(i, page, values, values[KV], values[CONC], values[TOKENS])
  end
  return answer()
end

if known[1] and message.number <= tonumber(known[1]) then return standing() end
redis.call('HSET', HOLDER, 'number', message.number)
redis.call('ZADD', KNOWN, exact(now), me)
keep(HOLDER, KNOWN)
local names = known[2] and cmsgpack.unpack(known[2]) or {}
local named = {}
for _, said in ipairs(message.holdings) do named[said[1]] = true end
if message.complete then
  redis.call('ZADD', ALIVE, exact(now + LIFETIME), me)
  redis.call('HSET', REPORTS, me, ARGV[2])
  keep(ALIVE, REPORTS)
  local returned = {}
  for _, name in ipairs(names) do
    if not named[name] then returned[#returned + 1] = name end
  end
  local given_up = load(returned, me)
  for _, page in pairs(given_up) do
    drop(page, me)
    refill(page)
    tell_waiters(page, me)
  end
  save(given_up, me)
  names = {}
elseif not is_alive then
  -- Who is not known to live cannot hold: only a complete message begins a lifetime.
  return standing()
end
for _, name in ipairs(names) do named[name] = nil end
for _, said in ipairs(message.holdings) do
  if named[said[1]] then names[#names + 1] = said[1] end
end
redis.call('HSET', HOLDER, 'names', cmsgpack.pack(names))

-- Ask everyone else who holds something of a page to return what is not in use.
local function recall(page)
  for other, till in pairs(page.waiters) do
    if till <= now then page.waiters[other] = nil end
  end
  page.waiters[me] = now + message.wait
  if page.contended_until >= now + message.contended / 2 then return end
  page.contended_until = now + message.contended
  local fields = redis.call('HGETALL', rows_key(page.name))
  for i = 1, #fields, 2 do
    local other = fields[i]
    if other ~= me then
      local values = cmsgpack.unpack(fields[i + 1]).values
      if values[KV] > 0 or values[CONC] > 0 or values[TOKENS] > 0 then push(other, 'recall', page.name) end
    end
  end
end

for i, said in ipairs(message.holdings) do
  local name, kv_in_use, conc_in_use, kv_bound, conc_bound, kv_wanted, conc_wanted, spent, tokens_wanted,
    is_urgent, demand, kv_seconds, conc_seconds, fresh, floor = unpack(said)
  local page = pages[name]
  refill(page)
  if not page.row then
    page.row = {served = {spent, kv_seconds, conc_seconds}, values = nobody()}
    page.rows = page.rows + 1
  end
  charge(page, {spent, kv_seconds, conc_seconds})
  local limit, sums, old = page.limit, page.sums, page.row.values
  for k = 1, 3 do page.floor[k] = math.max(page.floor[k], floor[k]) end
  local kv, conc, tokens = 0, 0, 0
  if is_open then
    kv = math.min(kv_wanted, limit[2] - (sums[KV] - old[KV]))
    -- Whole sequences: parts of one at several sidecars are of no use to any of them.
    conc = math.floor(math.min(conc_wanted, limit[3] - (sums[CONC] - old[CONC])) + 1e-6)
    tokens = math.max(math.min(tokens_wanted, page.level - (sums[TOKENS] - old[TOKENS])), 0)
  end
  -- May be less than what runs: then nothing new begins until enough of it has ended.
  kv, conc = math.max(kv, 0), math.max(conc, 0)
  write(page, {
    math.max(kv, kv_in_use, kv_bound), math.max(conc, conc_in_use, conc_bound), tokens, kv_in_use, conc_in_use,
    demand[1], demand[2], demand[3], fresh[1], fresh[2], fresh[3],
  })
  if is_urgent and (kv < kv_wanted or conc < conc_wanted or tokens < tokens_wanted) then
    recall(page)
  else
    tell_waiters(page, me)
  end
  grant(i, page, page.row.values, kv, conc, tokens)
end
save(pages, me)
return answer()
