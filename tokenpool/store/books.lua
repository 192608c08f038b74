-- What both scripts share: the message, the clock, and one entitlement's page. The rules are those of
-- tokenpool/books.py; the contract suite holds both to the same answers.
--
-- A page is a hash: tps, kv, conc, depth (the limit), level, at (the bucket), sum_kv, sum_conc, sum_tokens
-- (of all grants), and h:<holder> for each holder, a packed {kv, conc, tokens, spent, expires_at}.
-- Beside it, a sorted set says when each holder's grant ends, and later when the holder is forgotten.
local prefix = KEYS[1]
local message = cmsgpack.unpack(ARGV[1])
local now = message.now
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1e6
end
local LIFETIME, REMEMBER = message.lifetime, message.remember
local KEEP_MS = 600000

local META = prefix .. ':meta'
local PAGES = prefix .. ':pages'

local function exact(number) return string.format('%.17g', number) end

-- When these books begin to give: a lifetime after they were begun.
local opens_at = tonumber(redis.call('HGET', META, 'opens_at'))
if not opens_at then
  opens_at = now + LIFETIME
  redis.call('HSET', META, 'opens_at', exact(opens_at))
end
redis.call('PEXPIRE', META, KEEP_MS)

local FIELDS = {'tps', 'kv', 'conc', 'depth', 'level', 'at', 'sum_kv', 'sum_conc', 'sum_tokens'}

local function keys_of(name)
  return prefix .. ':page:' .. name, prefix .. ':ends:' .. name
end

local function load_page(name)
  local key, ends = keys_of(name)
  local values = redis.call('HMGET', key, unpack(FIELDS))
  local page = {key = key, ends = ends, name = name, exists = values[1] and true or false}
  for i, field in ipairs(FIELDS) do page[field] = tonumber(values[i] or 0) end
  if not page.exists then page.at = now end
  return page
end

local function save_page(page)
  local pairs_of = {}
  for _, field in ipairs(FIELDS) do
    pairs_of[#pairs_of + 1] = field
    pairs_of[#pairs_of + 1] = exact(page[field])
  end
  redis.call('HSET', page.key, unpack(pairs_of))
  redis.call('PEXPIRE', page.key, KEEP_MS)
  redis.call('PEXPIRE', page.ends, KEEP_MS)
  redis.call('SADD', PAGES, page.name)
  redis.call('PEXPIRE', PAGES, KEEP_MS)
end

local function load_holder(page, holder)
  local packed = redis.call('HGET', page.key, 'h:' .. holder)
  return packed and cmsgpack.unpack(packed) or nil
end

local function save_holder(page, holder, held, ends_at)
  redis.call('HSET', page.key, 'h:' .. holder, cmsgpack.pack(held))
  redis.call('ZADD', page.ends, exact(ends_at), holder)
end

local function take_back(page, held)
  page.sum_kv = page.sum_kv - held[1]
  page.sum_conc = page.sum_conc - held[2]
  page.sum_tokens = page.sum_tokens - held[3]
  held[1], held[2], held[3] = 0, 0, 0
end

-- Take back the grants of the silent; forget what they had spent a while later.
local function expire(page)
  for _, holder in ipairs(redis.call('ZRANGEBYSCORE', page.ends, '-inf', exact(now))) do
    local held = load_holder(page, holder)
    if held and held[5] + REMEMBER > now then
      take_back(page, held)
      save_holder(page, holder, held, held[5] + REMEMBER)
    else
      if held then take_back(page, held) end
      redis.call('HDEL', page.key, 'h:' .. holder)
      redis.call('ZREM', page.ends, holder)
    end
  end
  -- Sums of fractions drift; with nobody left they are nothing, exactly.
  if redis.call('ZCOUNT', page.ends, '(' .. exact(now), '+inf') == 0 then
    page.sum_kv, page.sum_conc, page.sum_tokens = 0, 0, 0
  end
end

local function refill(page)
  if now > page.at then
    page.level = math.min(page.level + page.tps * (now - page.at), page.depth)
    page.at = now
  end
end
