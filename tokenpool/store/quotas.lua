-- Quotas: the spending and the portions of each budget and window. The rules are the same as in
-- tokenpool/quotas/reference.py; the contract suite requires the same answers from both. A holder is a sidecar.
-- The constants of tokenpool/store/quota_script.py, such as REQUEST_KEY, precede this script.
--
-- Keys: KEYS[1], the prefix of all keys of the pool. It has a hash tag, so all keys are in one slot of a cluster.
-- Arguments: ARGV[1], the packed message: a map with the constants of the rules and these fields.
--   action 'exchange': holder, number, requests (QuotaRequest). Result: packed {portions, now, since}.
--   action 'states': first, last (positions). Result: packed {list of QuotaState, number of records read}. Windows
--     that have ended are left out.
--   action 'restore': key, start, spent. Result: 1, or 0 if the spending cannot be set yet.
-- Atomic: what is spent and held in all rows is compared with the quota, and several sidecars write rows.
--
-- PREFIX:quota_meta        hash: since
-- PREFIX:quotas            sorted set: the ids of records by the end of their window
-- PREFIX:quota:KEY@START   hash, a record: 'record', packed {key, start, end, tokens, born, base, unclaimed,
--                          restored, warned, settled, counts, rows} with sums over its rows; for each holder
--                          'row:HOLDER', packed {offset, used, settled, portion, number}
-- PREFIX:quota_alive       sorted set: holders by the end of their lifetime
-- PREFIX:quota_gone        sorted set: holders whose lifetime has ended, by that time
-- PREFIX:quota_names:X     set: the ids of the records with a row of the holder X
-- PREFIX:quota_ending      set: holders whose unused portions are being taken back
-- PREFIX:quota_ending:X    set: the ids of the records in which this is still to do. They are not in quota_names:X
-- PREFIX:quota_folding, PREFIX:quota_folding:X   the same for rows that become a part of the base
--
-- A sidecar may have 20,000 rows, and all records of a day end at once. So each call does only a part of such work.
local prefix = KEYS[1]
local message = cmsgpack.unpack(ARGV[1])
local now = message.now
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1e6
end
local LIFETIME, REMEMBER, KEEP, KEEP_SINCE = message.lifetime, message.remember, message.keep_record, message.keep_since
local META, RECORDS = prefix .. ':quota_meta', prefix .. ':quotas'
local ALIVE, GONE = prefix .. ':quota_alive', prefix .. ':quota_gone'
local ENDING, FOLDING = prefix .. ':quota_ending', prefix .. ':quota_folding'
local MOST_ROWS = 200 -- the most rows, or records, that one call ends: about 5 ms

-- A number as a text that is read as exactly the same number.
local function exact(number) return string.format('%.17g', number) end
local function milliseconds(seconds) return math.max(math.ceil(seconds * 1000), 1) end
local function names_key(holder) return prefix .. ':quota_names:' .. holder end
local function id_of(key, start) return prefix .. ':quota:' .. key .. '@' .. exact(start) end
local function keep(...)
  for _, key in ipairs({...}) do redis.call('PEXPIRE', key, milliseconds(KEEP_SINCE)) end
end

local function begin()
  local since = tonumber(redis.call('HGET', META, 'since') or nil)
  if not since then
    since = now
    redis.call('HSET', META, 'since', exact(now))
  end
  keep(META)
  return since
end

local function counts_of(row) return math.max(row.portion, row.used) end

-- A record and one holder's row; nil for each that is missing.
local function load(id, holder)
  local record, row = unpack(redis.call('HMGET', id, 'record', 'row:' .. holder))
  return record and cmsgpack.unpack(record) or nil, row and cmsgpack.unpack(row) or nil
end

local function save(id, record, holder, row)
  redis.call('HSET', id, 'record', cmsgpack.pack(record))
  if row then redis.call('HSET', id, 'row:' .. holder, cmsgpack.pack(row)) end
  -- Longer than until its removal below, which also removes its id from the sets of its holders.
  redis.call('PEXPIRE', id, milliseconds(record['end'] - now + 2 * KEEP))
end

-- Move all ids of one set to another one. Nearly always the other one is empty.
local function move(from, to)
  if redis.call('EXISTS', from) == 0 then return end
  if redis.call('EXISTS', to) == 0 then
    redis.call('RENAME', from, to)
  else
    redis.call('SUNIONSTORE', to, to, from)
    redis.call('DEL', from)
  end
end

-- Begin work on all rows of a holder, in the calls from now on.
local function queue(work, holder, from)
  move(from, work .. ':' .. holder)
  redis.call('SADD', work, holder)
  keep(work, work .. ':' .. holder)
end

-- Do a part of such work.
local function continue(work, act)
  local rest = MOST_ROWS
  for _, holder in ipairs(redis.call('SMEMBERS', work)) do
    if rest <= 0 then return end
    local ids = redis.call('SPOP', work .. ':' .. holder, rest)
    if #ids < rest then redis.call('SREM', work, holder) end
    rest = rest - #ids
    act(holder, ids)
  end
end

-- Take back the unused portions of a holder.
local function end_lifetime(holder, ids)
  for _, id in ipairs(ids) do
    local record, row = load(id, holder)
    if record and row then
      record.counts = record.counts - counts_of(row) + row.used
      row.portion = row.used
      save(id, record, holder, row)
      redis.call('SADD', names_key(holder), id)
    end
  end
end

-- The rows of a holder become a part of the base.
local function fold(holder, ids)
  for _, id in ipairs(ids) do
    local record, row = load(id, holder)
    if record and row then
      record.base = record.base + row.used
      record.counts, record.settled = record.counts - counts_of(row), record.settled - row.settled
      record.rows = record.rows - 1
      if record.rows == 0 then record.counts, record.settled = 0, 0 end
      redis.call('HDEL', id, 'row:' .. holder)
      save(id, record)
    end
  end
end

-- Remove a record, also from the sets of its holders.
local function remove(id)
  for _, field in ipairs(redis.call('HKEYS', id)) do
    local holder = string.match(field, '^row:(.*)$')
    if holder then redis.call('SREM', names_key(holder), id) end
  end
  redis.call('ZREM', RECORDS, id)
  redis.call('DEL', id)
end

local function expire()
  local ended = redis.call('ZRANGEBYSCORE', ALIVE, '-inf', exact(now), 'WITHSCORES')
  for i = 1, #ended, 2 do
    redis.call('ZREM', ALIVE, ended[i])
    redis.call('ZADD', GONE, ended[i + 1], ended[i])
    queue(ENDING, ended[i], names_key(ended[i]))
  end
  for _, holder in ipairs(redis.call('ZRANGEBYSCORE', GONE, '-inf', exact(now - REMEMBER))) do
    redis.call('ZREM', GONE, holder)
    redis.call('SREM', ENDING, holder)
    queue(FOLDING, holder, ENDING .. ':' .. holder)
    queue(FOLDING, holder, names_key(holder))
  end
  continue(ENDING, end_lifetime)
  continue(FOLDING, fold)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', RECORDS, '-inf', exact(now - KEEP), 'LIMIT', 0, MOST_ROWS)) do
    remove(id)
  end
end

local function is_restored(record) return record.restored or now >= record.born + message.restore_within end
-- A record is younger than the store if nobody had used the quota before.
local function may_restore(since) return now >= since + LIFETIME end

-- Write what a holder states, and grant it a portion.
local function write(record, row, request, is_open)
  local before = counts_of(row)
  record.settled = record.settled - row.settled
  row.settled = request[REQUEST_SETTLED] - row.offset
  row.used = row.settled + request[REQUEST_HELD]
  record.settled = record.settled + row.settled
  local others = record.base + record.counts - before
  local wanted, needed = request[REQUEST_WANTED] - row.offset, request[REQUEST_NEEDED] - row.offset
  if is_open then
    local free = record.tokens - others
    local fair = row.used + math.max(free - row.used, 0) / (2 * record.rows)
    wanted = math.min(wanted, free, math.max(needed, fair, before))
  else
    wanted = math.min(wanted, math.max(row.portion, request[REQUEST_PORTION] - row.offset))
  end
  row.portion = math.max(wanted, row.used)
  record.counts = record.counts - before + counts_of(row)
end

local function answer(request, since)
  local key, start = request[REQUEST_KEY], request[REQUEST_START]
  local id = id_of(key, start)
  local record, row = load(id, message.holder)
  if not record then
    record = {
      key = key, start = start, tokens = request[REQUEST_TOKENS], born = now, base = 0, unclaimed = 0,
      restored = start >= since, warned = 0, settled = 0, counts = 0, rows = 0,
    }
    record['end'] = request[REQUEST_END]
    redis.call('ZADD', RECORDS, exact(record['end']), id)
  end
  local is_open = now >= since + LIFETIME and is_restored(record)
  if not row then
    local is_known = request[REQUEST_BORN] == record.born
    row = {offset = is_known and request[REQUEST_COUNTED] or 0, used = 0, settled = 0, portion = 0, number = -1}
    -- The store has lost what it had granted.
    if request[REQUEST_BORN] ~= 0 and not is_known then
      row.offset = math.min(request[REQUEST_SETTLED], record.unclaimed)
      record.unclaimed = record.unclaimed - row.offset
      row.portion = request[REQUEST_PORTION] - row.offset
    end
    record.counts, record.rows = record.counts + counts_of(row), record.rows + 1
    redis.call('SADD', names_key(message.holder), id)
  end
  if message.number > row.number then
    row.number = message.number
    record.tokens = request[REQUEST_TOKENS]
    write(record, row, request, is_open)
  end
  local crossed, spent = 0, record.base + record.settled
  for _, level in ipairs(message.levels) do
    if spent >= record.tokens * level / 100 and record.warned < level then record.warned, crossed = level, level end
  end
  save(id, record, message.holder, row)
  local portion = new_portion()
  portion[PORTION_PORTION] = row.portion + row.offset
  portion[PORTION_FREE] = record.tokens - record.base - record.counts
  portion[PORTION_SPENT] = spent
  portion[PORTION_BORN] = record.born
  portion[PORTION_HOLDERS] = record.rows
  portion[PORTION_IS_OPEN] = is_open
  portion[PORTION_CROSSED] = crossed
  return portion
end

local function exchange(since)
  redis.call('ZADD', ALIVE, exact(now + LIFETIME), message.holder)
  redis.call('ZREM', GONE, message.holder)
  -- It has given up unused portions itself, and states this now.
  redis.call('SREM', ENDING, message.holder)
  move(ENDING .. ':' .. message.holder, names_key(message.holder))
  local portions = {}
  for i, request in ipairs(message.requests) do portions[i] = answer(request, since) end
  keep(RECORDS, ALIVE, GONE, names_key(message.holder))
  return cmsgpack.pack({portions, now, since})
end

local function states(since)
  local found, ids = {}, redis.call('ZRANGE', RECORDS, message.first, message.last)
  for _, id in ipairs(ids) do
    local packed = redis.call('HGET', id, 'record')
    local record = packed and cmsgpack.unpack(packed)
    if record and record['end'] > now then
      local state, spent = new_state(), record.base + record.settled
      state[STATE_KEY], state[STATE_START], state[STATE_END] = record.key, record.start, record['end']
      state[STATE_TOKENS], state[STATE_SPENT] = record.tokens, spent
      state[STATE_PORTIONS] = record.base + record.counts - spent
      state[STATE_IS_RESTORED] = is_restored(record)
      state[STATE_MAY_RESTORE] = may_restore(since)
      found[#found + 1] = state
    end
  end
  return cmsgpack.pack({found, #ids})
end

local function restore(since)
  local id = id_of(message.key, message.start)
  local packed = redis.call('HGET', id, 'record')
  local record = packed and cmsgpack.unpack(packed)
  if not record or not may_restore(since) then return 0 end
  local missing = message.spent - record.base - record.settled
  if missing > 0 then record.base, record.unclaimed = record.base + missing, record.unclaimed + missing end
  record.restored = true
  save(id, record)
  return 1
end

local since = begin()
expire()
if message.action == 'exchange' then return exchange(since) end
if message.action == 'states' then return states(since) end
return restore(since)
