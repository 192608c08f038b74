-- Read the next credentials of the feed.
-- Arguments: message.after, a sequence; message.count, the most credentials.
-- Result: the state of the feed as a text; the ids and the sequences of the credentials after that sequence, in order;
-- their values. The state is empty if no credential was ever written.
-- Atomic: the state and the values belong to the same moment.
local state = redis.call('HGET', META, 'credentials') or ''
local found = redis.call('ZRANGEBYSCORE', CREDENTIAL_FEED, '(' .. exact(message.after), '+inf', 'WITHSCORES',
  'LIMIT', 0, message.count)
local ids, sequences = {}, {}
for i = 1, #found, 2 do
  ids[#ids + 1], sequences[#sequences + 1] = found[i], found[i + 1]
end
return {state, ids, sequences, fields_of(CREDENTIALS, ids)}
