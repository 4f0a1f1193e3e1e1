"""Measurements that anybody can repeat: what each mixer can remember, and how fast it runs."""
