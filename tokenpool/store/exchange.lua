-- Apply a sidecar's message, and answer with its leases.
-- Arguments: message.holder, number, complete, renews; kept, a list of entitlements; names and requests, two lists of
-- the same length: entitlements and their lease requests (REQUEST_...); room (ROOM_...), or none; most_peers and
-- pool_bucket, constants of the rules. ARGV[2]: the sidecar's report.
-- Result: the packed answer (ANSWER_...) with a lease (LEASE_...) for each request, in their order.
-- Atomic: two sidecars that read the same free capacity would both get it.
check_open()
if now - tonumber(redis.call('HGET', META, 'heard_at')) > LIFETIME then
  redis.call('HSET', META, 'opens_at', exact(now + LIFETIME))
  is_open = false
end
-- This is the first write, because a full server refuses this command. After another first write, a full server would
-- run the whole script.
redis.call('HSET', META, 'heard_at', exact(now))
expire()
renew_keys()

local me = message.holder
local HOLDER, NAMES = holder_key(me), names_key(me)
-- The last complete message invalidates all earlier messages.
local is_late = message.number <= tonumber(redis.call('GET', HOLDER) or -1)
if not is_late then
  redis.call('ZADD', KNOWN, exact(now), me)
  keep(KNOWN)
end

local function push(holder, kind, name)
  redis.call('PUBLISH', prefix .. ':push:' .. holder, cmsgpack.pack({kind, name}))
end

-- If capacity is free in every dimension, notify the holders that lacked it.
local function notify_waiters(record)
  if not next(record.waiters) then return end
  local limit, sums = record.limit, record.sums
  if limit[LIMIT_KV_TOKENS] > sums[ROW_KV_TOKENS] and limit[LIMIT_CONCURRENCY] > sums[ROW_CONCURRENCY]
    and record.level > sums[ROW_TOKENS] then
    for other, until_time in pairs(record.waiters) do
      if other ~= me and until_time > now then push(other, 'freed', record.name) end
    end
    record.waiters = {}
  end
end

-- A complete message begins a lifetime, and returns the leases that it does not name.
local function begin_lifetime()
  redis.call('SET', HOLDER, message.number)
  redis.call('ZADD', ALIVE, exact(now + LIFETIME), me)
  local named, returned = {}, {}
  for _, name in ipairs(message.names) do named[name] = true end
  for _, name in ipairs(message.kept) do named[name] = true end
  for _, name in ipairs(redis.call('SMEMBERS', NAMES)) do
    if not named[name] then returned[#returned + 1] = name end
  end
  local records = load(returned, me)
  for name, record in pairs(records) do
    if record.row and record.row.number < message.number then
      drop(record, me)
      if record.published then
        refill(record)
        notify_waiters(record)
      end
    else
      -- If the row was lost, remove its name too.
      if not record.row then redis.call('SREM', NAMES, name) end
      records[name] = nil
    end
  end
  save(records, me)
end
if message.complete and not is_late then begin_lifetime() end

-- Only a complete message begins a lifetime. Without a lifetime, a holder gets no lease.
local is_alive = redis.call('ZSCORE', ALIVE, me)
local is_accepted = is_alive and not is_late
if is_accepted and (message.complete or message.renews) then
  redis.call('ZADD', ALIVE, exact(now + LIFETIME), me)
  redis.call('HSET', REPORTS, me, ARGV[2])
  keep(ALIVE, REPORTS, HOLDER, NAMES)
end

local function lease_of(record, own, kv_tokens, concurrency, tokens)
  local limit, sums, lease = record.limit, record.sums, new_lease()
  lease[LEASE_KV_TOKENS] = kv_tokens
  lease[LEASE_CONCURRENCY] = concurrency
  lease[LEASE_TOKENS] = tokens
  lease[LEASE_LIMIT] = limit
  lease[LEASE_LEVEL] = record.level - sums[ROW_TOKENS]
  lease[LEASE_KV_ELSEWHERE] = sums[ROW_KV_IN_USE] - own[ROW_KV_IN_USE]
  lease[LEASE_CONCURRENCY_ELSEWHERE] = sums[ROW_CONCURRENCY_IN_USE] - own[ROW_CONCURRENCY_IN_USE]
  lease[LEASE_IS_CONTENDED] = now < record.contended_until
  lease[LEASE_KV_FREE] = limit[LIMIT_KV_TOKENS] - sums[ROW_KV_TOKENS]
  lease[LEASE_CONCURRENCY_FREE] = limit[LIMIT_CONCURRENCY] - sums[ROW_CONCURRENCY]
  lease[LEASE_TOKENS_ELSEWHERE] = sums[ROW_TOKENS] - own[ROW_TOKENS]
  return lease
end

-- Remember that this holder lacks capacity, and ask the other holders to return unused leases.
local function reclaim(record)
  for other, until_time in pairs(record.waiters) do
    if until_time <= now then record.waiters[other] = nil end
  end
  record.waiters[me] = now + message.wait
  if record.contended_until >= now + message.contended / 2 then return end
  record.contended_until = now + message.contended
  local fields = redis.call('HGETALL', rows_key(record.name))
  for i = 1, #fields, 2 do
    local other = fields[i]
    if other ~= me then
      local values = cmsgpack.unpack(fields[i + 1]).values
      if values[ROW_KV_TOKENS] > 0 or values[ROW_CONCURRENCY] > 0 or values[ROW_TOKENS] > 0 then
        push(other, 'reclaim', record.name)
      end
    end
  end
end

-- Charge the holder's usage since its last message, and remember the sizes of its requests.
local function charge(record, request)
  local served, floor = new_dim(), request[REQUEST_FLOOR]
  served[DIM_TOKENS_PER_SECOND] = request[REQUEST_TOKENS_SPENT]
  served[DIM_KV_TOKENS] = request[REQUEST_KV_SECONDS]
  served[DIM_CONCURRENCY] = request[REQUEST_CONCURRENCY_SECONDS]
  local borrowed = request[REQUEST_TOKENS_BORROWED] or 0
  if not record.row then
    record.row = {served = served, values = new_row(), borrowed = borrowed}
    record.rows = record.rows + 1
    redis.call('SADD', NAMES, record.name)
  end
  local before = record.row.served
  record.level = record.level - (served[DIM_TOKENS_PER_SECOND] - before[DIM_TOKENS_PER_SECOND])
    + borrowed - (record.row.borrowed or 0)
  record.row.borrowed = borrowed
  if is_open then record.level = math.min(record.level, record.limit[LIMIT_DEPTH]) end
  for i = 1, #served do
    record.served[i] = record.served[i] + served[i] - before[i]
    record.floor[i] = math.max(record.floor[i], floor[i])
  end
  record.row.served = served
end

-- The wanted lease, at most the capacity that no other holder has: KV tokens, sequences, tokens. It may be less than
-- the holder has in use. Then the holder admits nothing until enough requests end.
local function granted(record, request)
  if not is_open then return 0, 0, 0 end
  local limit, sums, own = record.limit, record.sums, record.row.values
  local free_kv = limit[LIMIT_KV_TOKENS] - (sums[ROW_KV_TOKENS] - own[ROW_KV_TOKENS])
  local free_sequences = limit[LIMIT_CONCURRENCY] - (sums[ROW_CONCURRENCY] - own[ROW_CONCURRENCY])
  local free_tokens = record.level - (sums[ROW_TOKENS] - own[ROW_TOKENS])
  -- Whole sequences: no sidecar can use a part of a sequence. The tolerance is for rounding errors of the sums.
  local sequences = math.floor(math.min(request[REQUEST_CONCURRENCY_WANTED], free_sequences) + 1e-6)
  return math.max(math.min(request[REQUEST_KV_WANTED], free_kv), 0), math.max(sequences, 0),
    math.max(math.min(request[REQUEST_TOKENS_WANTED], free_tokens), 0)
end

local function row_of(request, kv_tokens, concurrency, tokens)
  local values, demand, fresh = new_row(), request[REQUEST_DEMAND], request[REQUEST_FRESH]
  local kv_in_use, concurrency_in_use = request[REQUEST_KV_IN_USE], request[REQUEST_CONCURRENCY_IN_USE]
  values[ROW_KV_TOKENS] = math.max(kv_tokens, kv_in_use, request[REQUEST_KV_BOUND])
  values[ROW_CONCURRENCY] = math.max(concurrency, concurrency_in_use, request[REQUEST_CONCURRENCY_BOUND])
  values[ROW_TOKENS] = tokens
  values[ROW_KV_IN_USE] = kv_in_use
  values[ROW_CONCURRENCY_IN_USE] = concurrency_in_use
  values[ROW_DEMAND_TOKENS_PER_SECOND] = demand[DIM_TOKENS_PER_SECOND]
  values[ROW_DEMAND_KV_TOKENS] = demand[DIM_KV_TOKENS]
  values[ROW_DEMAND_CONCURRENCY] = demand[DIM_CONCURRENCY]
  values[ROW_FRESH_TOKENS_PER_SECOND] = fresh[DIM_TOKENS_PER_SECOND]
  values[ROW_FRESH_KV_TOKENS] = fresh[DIM_KV_TOKENS]
  values[ROW_FRESH_CONCURRENCY] = fresh[DIM_CONCURRENCY]
  return values
end

-- Apply one lease request; returns the lease.
local function grant(record, request)
  refill(record)
  charge(record, request)
  record.row.number = message.number
  local kv_tokens, concurrency, tokens = granted(record, request)
  write(record, row_of(request, kv_tokens, concurrency, tokens))
  local is_short = kv_tokens < request[REQUEST_KV_WANTED] or concurrency < request[REQUEST_CONCURRENCY_WANTED]
    or tokens < request[REQUEST_TOKENS_WANTED]
  if request[REQUEST_IS_URGENT] and is_short then reclaim(record) else notify_waiters(record) end
  local lease = lease_of(record, record.row.values, kv_tokens, concurrency, tokens)
  if request[REQUEST_IS_LAST] then drop(record, me) end
  return lease
end

-- The lease of a holder whose request is not applied.
local function current_lease(record)
  refill(record)
  local own = record.row and record.row.values or new_row()
  return lease_of(record, own, own[ROW_KV_TOKENS], own[ROW_CONCURRENCY], own[ROW_TOKENS])
end

local leases, changed, records = {}, {}, load(message.names, me)
for i, name in ipairs(message.names) do
  local record, request = records[name], message.requests[i]
  if not record.published then record.limit = request[REQUEST_IDLE_LIMIT] end
  if is_accepted and not (record.row and record.row.number >= message.number) then
    leases[i] = grant(record, request)
    changed[name] = record
  else
    leases[i] = current_lease(record)
  end
end
save(changed, me)
-- The first row creates the set, which has no expiry yet.
if next(changed) then keep(NAMES) end

local meta = redis.call('HMGET', META, 'file_version', 'published_at', 'terms', 'credentials')
local file_version, published_at, packed_terms, credentials = unpack(meta)
local terms = packed_terms and cmsgpack.unpack(packed_terms) or {}

-- Remember this replica's free room, and charge its spending to the pool's bucket. Returns the free capacity.
local function state_room(room)
  local kv_tokens, sequences, level, at = unpack(redis.call('HMGET', POOL, 'kv_tokens', 'sequences', 'level', 'at'))
  kv_tokens, sequences = tonumber(kv_tokens or 0), tonumber(sequences or 0)
  local rate = terms[TERMS_CAPACITY] and terms[TERMS_CAPACITY][DIM_TOKENS_PER_SECOND] or 0
  level = tonumber(level or 0) + rate * math.max(now - tonumber(at or now), 0)
  local most = rate * message.pool_bucket
  level = math.min(level, most)
  if is_accepted then
    local packed = redis.call('HGET', ROOMS, me)
    local before = packed and cmsgpack.unpack(packed)
    if room then
      if redis.call('HSET', ROOMS, me, cmsgpack.pack(room)) == 1 then keep(ROOMS) end
      if before then
        kv_tokens = kv_tokens + room[ROOM_KV_TOKENS] - before[ROOM_KV_TOKENS]
        sequences = sequences + room[ROOM_SEQUENCES] - before[ROOM_SEQUENCES]
        level = math.min(level - (room[ROOM_TOKENS_SPENT] - before[ROOM_TOKENS_SPENT]), most)
      end
    elseif before then
      redis.call('HDEL', ROOMS, me)
    end
    if (room and true or false) ~= (before and true or false) then
      sum_rooms()
      kv_tokens, sequences = unpack(redis.call('HMGET', POOL, 'kv_tokens', 'sequences'))
    end
    if message.complete or message.renews then keep(ROOMS, POOL) end
  end
  local added = redis.call('HSET', POOL, 'kv_tokens', exact(kv_tokens), 'sequences', exact(sequences),
    'level', exact(level), 'at', exact(now))
  if added > 0 then keep(POOL) end
  local free = new_dim()
  free[DIM_TOKENS_PER_SECOND], free[DIM_KV_TOKENS], free[DIM_CONCURRENCY] =
    level, tonumber(kv_tokens), tonumber(sequences)
  return free
end

-- Random replicas that accept handovers, without the holder itself. It may be drawn, so one more is drawn.
local function peers()
  local found = {}
  local rooms = redis.call('HRANDFIELD', ROOMS, message.most_peers + 1, 'WITHVALUES')
  for i = 1, #rooms, 2 do
    local room = cmsgpack.unpack(rooms[i + 1])
    if rooms[i] ~= me and room[ROOM_ADDRESS] ~= '' and #found < message.most_peers then
      local peer = new_peer()
      peer[PEER_NAME], peer[PEER_ADDRESS] = rooms[i], room[ROOM_ADDRESS]
      peer[PEER_KV_TOKENS], peer[PEER_SEQUENCES] = room[ROOM_KV_TOKENS], room[ROOM_SEQUENCES]
      peer[PEER_CACHED] = room[ROOM_CACHED] or ''
      found[#found + 1] = peer
    end
  end
  return found
end

local answer = new_answer()
answer[ANSWER_LEASES] = leases
answer[ANSWER_IS_OPEN] = is_open
answer[ANSWER_SIDECARS] = redis.call('ZCARD', ALIVE)
answer[ANSWER_FILE_VERSION] = file_version or ''
answer[ANSWER_LIMITS_AGE_S] = published_at and now - tonumber(published_at) or math.huge
answer[ANSWER_TERMS] = terms
answer[ANSWER_IS_KNOWN] = is_alive and true or false
answer[ANSWER_ROWS] = redis.call('SCARD', NAMES)
answer[ANSWER_FREE] = state_room(message.room)
answer[ANSWER_PEERS] = peers()
answer[ANSWER_CREDENTIALS] = credentials or ''
return cmsgpack.pack(answer)
