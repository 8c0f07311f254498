"""What all three packages share; imports nothing of ours.

Reading order: `errors`, `settings` (with `section` and `training_settings`), `logs`, `database` (with `migrations`),
`audit`, `markfile`, `jobs`, `loops`, `tls` and `pki`, `cli`, `failpoint`.
"""
