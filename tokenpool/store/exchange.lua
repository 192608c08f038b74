-- Book what one sidecar says, and answer with what it holds.
opening()
if now - tonumber(redis.call('HGET', META, 'heard_at')) > LIFETIME then
  redis.call('HSET', META, 'opens_at', exact(now + LIFETIME))
  is_open = false
end
-- The first write is one that a full server refuses. After any other one it lets the whole script pass.
redis.call('HSET', META, 'heard_at', exact(now))
expire()
renew()

local me = message.holder
local HOLDER, NAMES = holder_key(me), names_key(me)
-- A message that is not later than the last complete one comes too late.
local is_late = message.number <= tonumber(redis.call('GET', HOLDER) or -1)
if not is_late then
  redis.call('ZADD', KNOWN, exact(now), me)
  keep(KNOWN)
end

local leases, said_of, stated = {}, {}, {}
for i, said in ipairs(message.holdings) do
  said_of[i] = said[1]
  stated[said[1]] = true
end

-- A complete message begins a lifetime, and returns what it does not name.
if message.complete and not is_late then
  redis.call('SET', HOLDER, message.number)
  redis.call('ZADD', ALIVE, exact(now + LIFETIME), me)
  local kept, returned = {}, {}
  for _, name in ipairs(message.kept) do kept[name] = true end
  for _, name in ipairs(redis.call('SMEMBERS', NAMES)) do
    if not stated[name] and not kept[name] then returned[#returned + 1] = name end
  end
  local given_up = load(returned, me)
  for name, page in pairs(given_up) do
    if page.row and page.row.number < message.number then
      drop(page, me)
      if page.published then
        refill(page)
        tell_waiters(page, me)
      end
    else
      -- If the row was lost, remove its name too.
      if not page.row then redis.call('SREM', NAMES, name) end
      given_up[name] = nil
    end
  end
  save(given_up, me)
end

-- Only a complete message begins a lifetime: a holder that is not known to live cannot hold.
local is_alive = redis.call('ZSCORE', ALIVE, me)
local books = is_alive and not is_late
if books and (message.complete or message.renews) then
  redis.call('ZADD', ALIVE, exact(now + LIFETIME), me)
  redis.call('HSET', REPORTS, me, ARGV[2])
  keep(ALIVE, REPORTS, HOLDER, NAMES)
end

local function lease(i, page, values, kv, conc, tokens)
  local limit, sums = page.limit, page.sums
  leases[i] = {
    kv, conc, tokens, limit, page.level - sums[TOKENS],
    sums[KV_USED] - values[KV_USED], sums[CONC_USED] - values[CONC_USED],
    now < page.contended_until, limit[2] - sums[KV], limit[3] - sums[CONC], sums[TOKENS] - values[TOKENS],
  }
end

-- Ask everyone else who holds something of a page to return what is not in use.
local function reclaim(page)
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
      if values[KV] > 0 or values[CONC] > 0 or values[TOKENS] > 0 then push(other, 'reclaim', page.name) end
    end
  end
end

local function book(i, page, said)
  local name, kv_in_use, conc_in_use, kv_bound, conc_bound, kv_wanted, conc_wanted, spent, tokens_wanted,
    is_urgent, demand, kv_seconds, conc_seconds, fresh, floor, is_last = unpack(said, 1, 16)
  refill(page)
  if not page.row then
    page.row = {served = {spent, kv_seconds, conc_seconds}, values = nobody()}
    page.rows = page.rows + 1
    redis.call('SADD', NAMES, name)
  end
  page.row.number = message.number
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
    reclaim(page)
  else
    tell_waiters(page, me)
  end
  lease(i, page, page.row.values, kv, conc, tokens)
  if is_last then drop(page, me) end
end

local pages, booked = load(said_of, me), {}
for i, said in ipairs(message.holdings) do
  local page = pages[said[1]]
  if not page.published then page.limit = said[17] end
  if books and not (page.row and page.row.number >= message.number) then
    book(i, page, said)
    booked[said[1]] = page
  else
    refill(page)
    local values = page.row and page.row.values or nobody()
    lease(i, page, values, values[KV], values[CONC], values[TOKENS])
  end
end
save(booked, me)
-- The first row creates the set.
if next(booked) then keep(NAMES) end

local meta = redis.call('HMGET', META, 'file_version', 'led_at', 'terms')
return cmsgpack.pack({
  leases, is_open, redis.call('ZCARD', ALIVE), meta[1] or '', meta[2] and now - tonumber(meta[2]) or math.huge,
  meta[3] and cmsgpack.unpack(meta[3]) or {}, is_alive and true or false, redis.call('SCARD', NAMES),
})
