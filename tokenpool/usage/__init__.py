"""Usage records: what settled requests used, as values for reports and quotas."""
