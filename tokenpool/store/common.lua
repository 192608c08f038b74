-- The part that all scripts share: keys, the clock, and access to entitlement records. It precedes each script. The
-- constants of tokenpool/leases/row_layout.py, such as ROW_KV_TOKENS, precede it. The rules are the same as in
-- tokenpool/leases/reference_store.py; the contract suite requires the same answers from both. A holder is a sidecar.
--
-- Keys: KEYS[1], the prefix of all keys of the pool. It has a hash tag, so all keys are in one slot of a cluster.
-- Arguments: ARGV[1], the packed message: a map with the constants of the rules and the script's own fields.
-- Atomic: all scripts check and change sums that several sidecars and the coordinator write.
--
-- PREFIX:meta        hash: opens_at, heard_at, published_at, epoch, file_version, renewed_at, terms (packed);
--                    complete once all limits were written; schema, the version of the leader's messages;
--                    credentials, the state of the feed of credentials: generation, sequence, count, check;
--                    limits, the mark of the last complete publication of limits
-- PREFIX:records     hash by entitlement: its packed record {level, at, depth, floor, sums, served, waiters,
--                    contended_until, rows}; missing until a sidecar writes it
-- PREFIX:changed     sorted set: entitlements by the time of the last write of their record
-- PREFIX:limits      hash by entitlement: its packed limit; missing for an idle entitlement
-- PREFIX:rows:NAME   hash by holder: its packed row {served, values, number} of the entitlement NAME
-- PREFIX:holder:X    the number of the last complete message of the holder X
-- PREFIX:names:X     set: the entitlements with a row of the holder X
-- PREFIX:alive       sorted set: holders by the end of their lifetime
-- PREFIX:known       sorted set: holders by the time of their last message
-- PREFIX:reports     hash by holder
-- PREFIX:rooms       hash by holder: its packed room (ROOM_...)
-- PREFIX:pool        hash: kv_tokens and sequences, the sums over all rooms; level and at, the pool's token bucket
-- PREFIX:secret      the secret of the pool
-- PREFIX:file        hash: version, content
-- PREFIX:credentials  hash by id: the version and the content of an issued credential, with a space between them
-- PREFIX:credential_feed  sorted set: the ids of credentials by the sequence of their last write
-- PREFIX:scale_hint  hash: content, at
-- PREFIX:prices      hash by holder: its learned prices
-- PREFIX:price_writers  sorted set: holders by the time of their last write of prices
-- PREFIX:leader      the packed candidate and epoch of the leader
--
-- One hash has all records and one has all limits, because a call from a script costs ten times the look-up. So one
-- call reads or writes many of them.
local prefix = KEYS[1]
local message = cmsgpack.unpack(ARGV[1])
local now = message.now
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1e6
end
local LIFETIME, REMEMBER = message.lifetime, message.remember
local KEEP_MS = message.keep * 1000
-- Rows expire after records. The expiry of records is renewed once a minute, and when a record is added. Without its
-- rows, a record would keep wrong sums.
local KEEP_ROWS_MS = KEEP_MS + 120000
-- The most fields in one call: Lua's stack bounds the arguments of a function.
local MOST_FIELDS = 500
local META, REPORTS = prefix .. ':meta', prefix .. ':reports'
local RECORDS, LIMITS, CHANGED = prefix .. ':records', prefix .. ':limits', prefix .. ':changed'
local ALIVE, KNOWN = prefix .. ':alive', prefix .. ':known'
local ROOMS, POOL = prefix .. ':rooms', prefix .. ':pool'
local FILE, SCALE_HINT = prefix .. ':file', prefix .. ':scale_hint'
local SECRET = prefix .. ':secret'
local CREDENTIALS, CREDENTIAL_FEED = prefix .. ':credentials', prefix .. ':credential_feed'
local PRICES, PRICE_WRITERS = prefix .. ':prices', prefix .. ':price_writers'
local LEADER = prefix .. ':leader'

-- A number as a text that is read as exactly the same number.
local function exact(number) return string.format('%.17g', number) end

local function keep(...)
  for _, key in ipairs({...}) do redis.call('PEXPIRE', key, KEEP_MS) end
end

local function rows_key(name) return prefix .. ':rows:' .. name end
local function holder_key(holder) return prefix .. ':holder:' .. holder end
local function names_key(holder) return prefix .. ':names:' .. holder end

-- The epoch of the coordinator that wrote last; 0 before the first.
local function stored_epoch() return tonumber(redis.call('HGET', META, 'epoch') or 0) end

-- A record with its published limit. Without one, ``published`` is false and the caller sets the limit.
local function unpack_record(name, packed, limit)
  local record = packed and cmsgpack.unpack(packed) or {
    level = 0, at = now, depth = 0, floor = new_dim(), sums = new_row(), served = new_dim(),
    waiters = {}, contended_until = 0, rows = 0,
  }
  record.name, record.published = name, limit and true or false
  record.limit = limit and cmsgpack.unpack(limit) or new_limit()
  return record
end

local function keep_rows(name) redis.call('PEXPIRE', rows_key(name), KEEP_ROWS_MS) end

-- The values of any number of fields of a hash, in the order of the names.
local function fields_of(key, names)
  local values = {}
  for start = 1, #names, MOST_FIELDS do
    local part = redis.call('HMGET', key, unpack(names, start, math.min(start + MOST_FIELDS - 1, #names)))
    for i = 1, #part do values[start + i - 1] = part[i] end
  end
  return values
end

-- Records by name, each with one holder's row if it has one.
local function load(names, holder)
  local records, packed, limits = {}, fields_of(RECORDS, names), fields_of(LIMITS, names)
  for i, name in ipairs(names) do
    local record = unpack_record(name, packed[i], limits[i])
    if packed[i] then
      local row = redis.call('HGET', rows_key(name), holder)
      record.row = row and cmsgpack.unpack(row) or nil
    else
      -- The record was lost, so its rows are in no sum.
      redis.call('DEL', rows_key(name))
    end
    records[name] = record
  end
  return records
end

-- Write such records and the holder's rows. The caller cannot use the records afterwards.
local function save(records, holder)
  local fields, changes, at = {}, {}, exact(now)
  local function flush()
    if #fields == 0 then return end
    if redis.call('HSET', RECORDS, unpack(fields)) > 0 then keep(RECORDS) end
    if redis.call('ZADD', CHANGED, unpack(changes)) > 0 then keep(CHANGED) end
    fields, changes = {}, {}
  end
  for name, record in pairs(records) do
    local row = record.row
    if row and redis.call('HSET', rows_key(name), holder, cmsgpack.pack(row)) == 1 then keep_rows(name) end
    record.name, record.limit, record.row, record.published = nil, nil, nil, nil
    fields[#fields + 1], fields[#fields + 2] = name, cmsgpack.pack(record)
    changes[#changes + 1], changes[#changes + 2] = at, name
    if #fields == MOST_FIELDS then flush() end
  end
  flush()
end

-- Whether the lease store grants leases. ``check_open`` sets it.
local is_open = false

-- Apply the limit in force, and bring the bucket and the request sizes up to date.
local function refill(record)
  local limit, elapsed = record.limit, math.max(now - record.at, 0)
  local depth = limit[LIMIT_DEPTH]
  if record.depth == 0 or depth == 0 then
    record.level = depth
  else
    record.level = record.level + limit[LIMIT_TOKENS_PER_SECOND] * elapsed
    if is_open then record.level = math.min(record.level, depth) end
  end
  record.depth = depth
  if elapsed > 0 then
    local kept = math.exp(-elapsed / message.request_size_memory)
    for i, size in ipairs(record.floor) do record.floor[i] = size * kept end
    record.at = now
  end
end

-- Replace the values of the holder's row, and update the sums.
local function write(record, values)
  local sums, old = record.sums, record.row.values
  -- Another version of the scripts may have written fewer columns, or more.
  for i = 1, math.max(#sums, #values, #old) do sums[i] = (sums[i] or 0) + (values[i] or 0) - (old[i] or 0) end
  record.row.values = values
end

-- Remove the holder's row. Without rows the sums are set to exactly zero, which ends rounding errors.
local function drop(record, holder)
  if not record.row then return end
  write(record, new_row())
  record.row = nil
  redis.call('HDEL', rows_key(record.name), holder)
  redis.call('SREM', names_key(holder), record.name)
  record.rows = record.rows - 1
  if record.rows == 0 then record.sums = new_row() end
end

-- Call ``act`` with every record that has a row of a holder, and write the records.
local function for_all_of(holder, act)
  local names = redis.call('SMEMBERS', names_key(holder))
  local records = load(names, holder)
  for name, record in pairs(records) do
    if record.row then act(record) else records[name] = nil end
  end
  save(records, holder)
end

-- Recompute the sums over all rooms. So an error of a sum lasts until the next replica joins or leaves.
local function sum_rooms()
  local kv_tokens, sequences = 0, 0
  for _, packed in ipairs(redis.call('HVALS', ROOMS)) do
    local room = cmsgpack.unpack(packed)
    kv_tokens, sequences = kv_tokens + room[ROOM_KV_TOKENS], sequences + room[ROOM_SEQUENCES]
  end
  redis.call('HSET', POOL, 'kv_tokens', exact(kv_tokens), 'sequences', exact(sequences))
  keep(POOL)
end

-- Take back the leases of holders whose lifetime has ended. Their usage totals are removed after REMEMBER.
local function expire()
  for _, holder in ipairs(redis.call('ZRANGEBYSCORE', ALIVE, '-inf', exact(now))) do
    redis.call('ZREM', ALIVE, holder)
    redis.call('HDEL', REPORTS, holder)
    if redis.call('HDEL', ROOMS, holder) == 1 then sum_rooms() end
    for_all_of(holder, function(record) write(record, new_row()) end)
  end
  for _, holder in ipairs(redis.call('ZRANGEBYSCORE', KNOWN, '-inf', exact(now - REMEMBER))) do
    if not redis.call('ZSCORE', ALIVE, holder) then
      for_all_of(holder, function(record) drop(record, holder) end)
      redis.call('DEL', holder_key(holder), names_key(holder))
      redis.call('ZREM', KNOWN, holder)
    end
  end
end

-- Once a minute, renew the expiry of the keys that all sidecars need. So without a leader, limits stay in force while
-- any sidecar sends messages.
local function renew_keys()
  local renewed_at = tonumber(redis.call('HGET', META, 'renewed_at') or 0)
  if now - renewed_at < 60 and now >= renewed_at then return end
  redis.call('HSET', META, 'renewed_at', exact(now))
  keep(META, RECORDS, LIMITS, CHANGED, FILE, CREDENTIALS, CREDENTIAL_FEED)
  for _, name in ipairs(redis.call('HKEYS', RECORDS)) do keep_rows(name) end
end

-- Set is_open: the store grants leases from one lifetime after its first call.
local function check_open()
  local opens_at = tonumber(redis.call('HGET', META, 'opens_at'))
  if not opens_at then
    opens_at = now + LIFETIME
    redis.call('HSET', META, 'opens_at', exact(opens_at), 'heard_at', exact(now))
    keep(META)
  end
  is_open = now >= opens_at
end
