-- Usage records, and their sums by period of 900 seconds.
CREATE TABLE usage_records (
  id TEXT PRIMARY KEY,
  time DOUBLE PRECISION NOT NULL,
  pool TEXT NOT NULL,
  entitlement TEXT NOT NULL,
  model TEXT NOT NULL,
  route TEXT NOT NULL,
  input_tokens BIGINT NOT NULL,
  output_tokens BIGINT NOT NULL,
  cached_tokens BIGINT NOT NULL,
  kv_token_seconds DOUBLE PRECISION NOT NULL,
  sequence_seconds DOUBLE PRECISION NOT NULL,
  queue_s DOUBLE PRECISION NOT NULL,
  ttft_s DOUBLE PRECISION,
  outcome TEXT NOT NULL,
  replica TEXT NOT NULL,
  group_name TEXT NOT NULL,
  credential_id TEXT NOT NULL,
  is_estimated BOOLEAN NOT NULL
);
CREATE INDEX usage_records_by_time ON usage_records (time);
CREATE TABLE usage_sums (
  period BIGINT NOT NULL,
  pool TEXT NOT NULL,
  entitlement TEXT NOT NULL,
  group_name TEXT NOT NULL,
  credential_id TEXT NOT NULL,
  model TEXT NOT NULL,
  requests BIGINT NOT NULL,
  estimated_requests BIGINT NOT NULL,
  input_tokens BIGINT NOT NULL,
  output_tokens BIGINT NOT NULL,
  cached_tokens BIGINT NOT NULL,
  kv_token_seconds DOUBLE PRECISION NOT NULL,
  sequence_seconds DOUBLE PRECISION NOT NULL,
  queue_s DOUBLE PRECISION NOT NULL,
  ttft_s DOUBLE PRECISION NOT NULL,
  ttft_requests BIGINT NOT NULL,
  PRIMARY KEY (period, pool, entitlement, group_name, credential_id, model)
);
CREATE INDEX usage_sums_by_entitlement ON usage_sums (pool, entitlement, period);
CREATE INDEX usage_sums_by_group ON usage_sums (pool, group_name, period);
CREATE INDEX usage_sums_by_credential ON usage_sums (pool, credential_id, period);
-- One row: a random name of this database. Sidecars' records go to one database only.
CREATE TABLE usage_store (identity TEXT NOT NULL);
