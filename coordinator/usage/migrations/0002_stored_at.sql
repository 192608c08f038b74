-- When a record was stored, so that an export finds records that come late. Seconds since 1970.
ALTER TABLE usage_records ADD COLUMN stored_at DOUBLE PRECISION NOT NULL DEFAULT 0;
CREATE INDEX usage_records_by_storage ON usage_records (stored_at, id);
