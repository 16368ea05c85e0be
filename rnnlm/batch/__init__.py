"""A batch job's contract: key, shards, ledger, lease, manifest."""
