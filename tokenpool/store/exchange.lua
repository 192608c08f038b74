-- Book what one sidecar says, and answer with what it holds from now for one lifetime.
local HOLDER = prefix .. ':holder:' .. message.holder
local known = redis.call('HMGET', HOLDER, 'number', 'at', 'names')
local grants = {}

if known[1] and message.number <= tonumber(known[1]) and now - tonumber(known[2]) < REMEMBER then
  -- Doubled or late: nothing is booked, and nothing is renewed.
  for i, said in ipairs(message.holdings) do
    local page = load_page(said[1])
    local held
    if page.exists then
      expire(page)
      save_page(page)
      held = load_holder(page, message.holder)
    end
    grants[i] = held and {held[1], held[2], held[3]} or {0, 0, 0}
  end
  return cmsgpack.pack(grants)
end

local named = {}
for _, said in ipairs(message.holdings) do named[said[1]] = true end
for _, name in ipairs(known[3] and cmsgpack.unpack(known[3]) or {}) do
  if not named[name] then
    local page = load_page(name)
    local held = page.exists and load_holder(page, message.holder)
    if held then
      take_back(page, held)
      save_holder(page, message.holder, held, held[5])
      save_page(page)
    end
  end
end

-- What runs in any case; more only where it is free, and not before everyone has booked what runs.
local function gauge(in_use, wanted, free)
  if now < opens_at then return in_use end
  return math.max(in_use, math.min(wanted, free))
end

local names = {}
for i, said in ipairs(message.holdings) do
  local name, kv_in_use, conc_in_use, kv_wanted, conc_wanted, spent, tokens_wanted = unpack(said)
  names[i] = name
  local page = load_page(name)
  expire(page)
  refill(page)
  local held = load_holder(page, message.holder) or {0, 0, 0, spent, 0}
  page.level = math.min(page.level - (spent - held[4]), page.depth)
  take_back(page, held)  -- the sums are now what the others hold
  held[1] = gauge(kv_in_use, kv_wanted, page.kv - page.sum_kv)
  held[2] = gauge(conc_in_use, conc_wanted, page.conc - page.sum_conc)
  held[3] = now < opens_at and 0 or math.max(math.min(tokens_wanted, page.level - page.sum_tokens), 0)
  held[4] = spent
  held[5] = now + LIFETIME
  page.sum_kv = page.sum_kv + held[1]
  page.sum_conc = page.sum_conc + held[2]
  page.sum_tokens = page.sum_tokens + held[3]
  save_holder(page, message.holder, held, held[5])
  save_page(page)
  grants[i] = {held[1], held[2], held[3]}
end

redis.call('HSET', HOLDER, 'number', message.number, 'at', exact(now), 'names', cmsgpack.pack(names))
redis.call('PEXPIRE', HOLDER, math.ceil(REMEMBER * 1000))
return cmsgpack.pack(grants)
