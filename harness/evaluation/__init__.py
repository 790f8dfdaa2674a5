"""Run models over tasks: in this process, in shards, on a cluster, with early stop."""
