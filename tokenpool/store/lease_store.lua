-- What all scripts share: the message, the clock, and one entitlement's page. The rules are those of
-- tokenpool/leases/reference_store.py; the contract suite holds both to the same answers.
--
-- meta     hash: opens_at, heard_at, led_at, epoch, file_version, renewed_at, terms (packed: where the pool stands);
--          limited once all limits were written
-- pages    hash by entitlement: its packed page {level, at, depth, floor, sums, served, waiters,
--          contended_until, rows}; missing until somebody writes in it
-- limits   hash by entitlement: its packed limit as published; none for an entitlement that is idle
-- rows:X   hash by holder: its packed row {served, values, number} of entitlement X
-- holder:X the number of its last complete message; names:X: the set of entitlements of which it has a row
-- alive, known: sorted sets of holders by when they end
-- reports  hash by holder; file: hash of version, content; scale: hash of content, at
--
-- One hash for all pages and one for all limits, since a call from a script costs ten times the look-up: a
-- hundred of them are read and written at a time.
local prefix = KEYS[1]
local message = cmsgpack.unpack(ARGV[1])
local now = message.now
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1e6
end
local LIFETIME, REMEMBER = message.lifetime, message.remember
local KEEP_MS = 600000
-- Rows outlive pages, which are renewed once a minute and whenever there is a new one: sums without the rows that
-- they are made of would never be right again.
local KEEP_ROWS_MS = KEEP_MS + 120000
local META, REPORTS = prefix .. ':meta', prefix .. ':reports'
local PAGES, LIMITS = prefix .. ':pages', prefix .. ':limits'
local ALIVE, KNOWN = prefix .. ':alive', prefix .. ':known'
local WIDTH = 11
local KV, CONC, TOKENS, KV_USED, CONC_USED = 1, 2, 3, 4, 5

local function exact(number) return string.format('%.17g', number) end

local function keep(...)
  for _, key in ipairs({...}) do redis.call('PEXPIRE', key, KEEP_MS) end
end

local function nobody()
  return {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
end

local function rows_key(name) return prefix .. ':rows:' .. name end
local function holder_key(holder) return prefix .. ':holder:' .. holder end
local function names_key(holder) return prefix .. ':names:' .. holder end

local NO_LIMIT = {0, 0, 0, 0, 0, 0, 0}

-- Only what is published counts here: ``published`` tells.
local function unpack_page(name, packed, limit)
  local page = packed and cmsgpack.unpack(packed) or {
    level = 0, at = now, depth = 0, floor = {0, 0, 0}, sums = nobody(), served = {0, 0, 0},
    waiters = {}, contended_until = 0, rows = 0,
  }
  page.name, page.published = name, limit and true or false
  page.limit = limit and cmsgpack.unpack(limit) or NO_LIMIT
  return page
end

local function keep_rows(name) redis.call('PEXPIRE', rows_key(name), KEEP_ROWS_MS) end

-- Some fields of a hash, as many as there are.
local function fields_of(key, names)
  local values = {}
  for start = 1, #names, 500 do
    local part = redis.call('HMGET', key, unpack(names, start, math.min(start + 499, #names)))
    for i = 1, #part do values[start + i - 1] = part[i] end
  end
  return values
end

-- Pages by name, each with one holder's row of it where there is one.
local function load(names, holder)
  local pages, packed, limits = {}, fields_of(PAGES, names), fields_of(LIMITS, names)
  for i, name in ipairs(names) do
    local page = unpack_page(name, packed[i], limits[i])
    if packed[i] then
      local row = redis.call('HGET', rows_key(name), holder)
      page.row = row and cmsgpack.unpack(row) or nil
    else
      -- A page that is gone takes its rows with it.
      redis.call('DEL', rows_key(name))
    end
    pages[name] = page
  end
  return pages
end

-- Write such pages back, and the holder's rows; nothing can be done with them afterwards.
local function save(pages, holder)
  local fields = {}
  local function flush()
    if #fields > 0 and redis.call('HSET', PAGES, unpack(fields)) > 0 then keep(PAGES) end
    fields = {}
  end
  for name, page in pairs(pages) do
    local row = page.row
    if row and redis.call('HSET', rows_key(name), holder, cmsgpack.pack(row)) == 1 then keep_rows(name) end
    page.name, page.limit, page.row, page.published = nil, nil, nil, nil
    fields[#fields + 1], fields[#fields + 2] = name, cmsgpack.pack(page)
    if #fields == 500 then flush() end
  end
  flush()
end

-- Whether the lease store gives: what a script finds out first.
local is_open = false

-- Take over the limit that is published, and bring the bucket up to date by it: see tokenpool/leases/reference_store.py.
local function refill(page)
  local elapsed, depth = math.max(now - page.at, 0), page.limit[4]
  if page.depth == 0 or depth == 0 then
    page.level = depth
  else
    page.level = page.level + page.limit[1] * elapsed
    if is_open then page.level = math.min(page.level, depth) end
  end
  page.depth = depth
  if elapsed > 0 then
    local kept = math.exp(-elapsed / message.floor_memory)
    for i = 1, 3 do page.floor[i] = page.floor[i] * kept end
    page.at = now
  end
end

local function write(page, values)
  for i = 1, WIDTH do page.sums[i] = page.sums[i] + values[i] - page.row.values[i] end
  page.row.values = values
end

-- Book what a holder spent and held since it last said so.
local function charge(page, served)
  local before = page.row.served
  page.level = page.level - (served[1] - before[1])
  if is_open then page.level = math.min(page.level, page.limit[4]) end
  for i = 1, 3 do page.served[i] = page.served[i] + served[i] - before[i] end
  page.row.served = served
end

-- Forget a row; with nobody left the sums are nothing, exactly.
local function drop(page, holder)
  if not page.row then return end
  write(page, nobody())
  page.row = nil
  redis.call('HDEL', rows_key(page.name), holder)
  redis.call('SREM', names_key(holder), page.name)
  page.rows = page.rows - 1
  if page.rows == 0 then page.sums = nobody() end
end

local function push(holder, kind, name)
  redis.call('PUBLISH', prefix .. ':push:' .. holder, cmsgpack.pack({kind, name}))
end

-- Where there is something to be had now, say so to those who were refused.
local function tell_waiters(page, teller)
  if not next(page.waiters) then return end
  local limit, sums = page.limit, page.sums
  if limit[2] > sums[KV] and limit[3] > sums[CONC] and page.level > sums[TOKENS] then
    for other, till in pairs(page.waiters) do
      if other ~= teller and till > now then push(other, 'freed', page.name) end
    end
    page.waiters = {}
  end
end

-- Do something with every page of which a holder has a row.
local function for_all_of(holder, act)
  local names = redis.call('SMEMBERS', names_key(holder))
  local pages = load(names, holder)
  for name, page in pairs(pages) do
    if page.row then act(page) else pages[name] = nil end
  end
  save(pages, holder)
end

-- Take back the leases of the silent; forget what they had spent a while later.
local function expire()
  for _, holder in ipairs(redis.call('ZRANGEBYSCORE', ALIVE, '-inf', exact(now))) do
    redis.call('ZREM', ALIVE, holder)
    redis.call('HDEL', REPORTS, holder)
    for_all_of(holder, function(page) write(page, nobody()) end)
  end
  for _, holder in ipairs(redis.call('ZRANGEBYSCORE', KNOWN, '-inf', exact(now - REMEMBER))) do
    if not redis.call('ZSCORE', ALIVE, holder) then
      for_all_of(holder, function(page) drop(page, holder) end)
      redis.call('DEL', holder_key(holder), names_key(holder))
      redis.call('ZREM', KNOWN, holder)
    end
  end
end

-- Once a minute: what everybody needs lives on while anybody speaks, so that limits stand without a leader.
local function renew()
  local renewed_at = tonumber(redis.call('HGET', META, 'renewed_at') or 0)
  if now - renewed_at < 60 and now >= renewed_at then return end
  redis.call('HSET', META, 'renewed_at', exact(now))
  keep(META, PAGES, LIMITS, prefix .. ':file')
  for _, name in ipairs(redis.call('HKEYS', PAGES)) do keep_rows(name) end
end

-- When these books begin to give: a lifetime after they were begun. Tells whether they do.
local function opening()
  local opens_at = tonumber(redis.call('HGET', META, 'opens_at'))
  if not opens_at then
    opens_at = now + LIFETIME
    redis.call('HSET', META, 'opens_at', exact(opens_at), 'heard_at', exact(now))
    keep(META)
  end
  is_open = now >= opens_at
end
