"""What all three packages share; imports nothing of ours.

Reading order: `errors`, `settings`, `logs`, `database` (with `migrations`), `audit`, `jobs`, `loops`, `tls` and `pki`,
`cli`, `failpoint`.
"""
