"""loadgen: a load generator for pools, and an engine simulator. It measures at the client."""
